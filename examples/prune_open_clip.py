"""Prunes any open_clip model with MoPE, on captions from a CSV or from COCO.

    python examples/prune_open_clip.py --model ViT-B-32@laion2b_s34b_b79k --csv pairs.csv --output runs/b32
    python examples/prune_open_clip.py --model ViT-B-32 --pretrained none --coco captions_val2017.json --images val2017

The model is scored on calibration pairs and its recall reported on others: the rest of the images, or `--test`. The folder
`--output` gets a checkpoint, which `mope.load` reads with preprocessing and tokenizer, and `scores.json`.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from pathlib import Path
from typing import Any

import torch

import torch_pruning_mope as mope
from torch_pruning_mope.cost import footprints


def read(
    options: argparse.Namespace, preprocess: Any, tokenizer: Any
) -> tuple[mope.data.ImagePairs, mope.data.ImagePairs]:
    """Calibration and test images, none in both; drawn by a fixed seed."""
    keys = {} if options.coco else {"image_key": options.csv_image, "caption_key": options.csv_caption}

    def images(file: Path) -> mope.data.ImagePairs:
        return mope.open_pairs(
            file, preprocess, tokenizer, root=options.images, max_skipped=options.max_skipped, **keys
        )

    everything = images(options.coco or options.csv)
    size = min(options.calibration, len(everything))
    parts = mope.split_pairs(everything, calibration=size, test=0, seed=options.seed)
    calibration, test = parts.calibration, images(options.test) if options.test else parts.train
    if len(test) < 2:
        raise ValueError(
            f"--calibration must leave at least two images to test on; found {len(test)} of {len(everything)} left. Use "
            "fewer, or give --test a file of other images."
        )
    shared = set(calibration.files) & set(test.files)
    if shared:
        raise ValueError(
            f"--test must hold no calibration image; found {len(shared)} in both (first: {min(shared)}). Take them out."
        )
    return calibration, test


def pairs_of(name: str, images: mope.data.ImagePairs, device: torch.device) -> mope.Pairs:
    """The pairs; a warning says what could not be read."""
    pairs = mope.gather_pairs(images)
    print(f"{name}: {pairs.num_images} images, {pairs.num_captions} captions, {images.skipped.samples} images unusable")
    return pairs.to(device)


def describe(stage: str, encoder: mope.DualEncoder, test: mope.Pairs, batch_size: int) -> None:
    """Prints what the model costs and how well it retrieves."""
    counts, sizes = encoder.counts(), footprints(encoder).values()
    found = mope.evaluate_retrieval(encoder, test, ks=(1, 5), batch_size=batch_size).recalls
    print(
        f"{stage:6} {counts.heads} heads, {counts.neurons} neurons, {sum(x.parameters for x in sizes) / 1e6:.2f} M parameters, "
        f"{sum(s.multiply_adds for s in sizes) / 1e9:.3f} G multiply-adds a pair |  image→text R@1 {found['i2t_r1']:.1f} "
        f"R@5 {found['i2t_r5']:.1f}, text→image R@1 {found['t2i_r1']:.1f} R@5 {found['t2i_r5']:.1f}"
    )


def run(options: argparse.Namespace) -> None:
    """The whole job; its core is the same ten lines as in the README."""
    name, _, tag = options.model.partition("@")
    pretrained = options.pretrained or tag or "none"
    device = torch.device(options.device)
    name = name if pretrained == "none" else f"{name}@{pretrained}"
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*so they are random")  # as asked for
        model, preprocess, tokenizer = mope.load_model(name, device=device)
    encoder = mope.DualEncoder(model)
    asked = {"head_ratio": options.head_ratio, "ffn_ratio": options.ffn_ratio, "global_pruning": options.global_pruning}
    encoder.request(**asked)  # refuses bad ratios before images are read
    chosen, others = read(options, preprocess, tokenizer)
    calibration, test = pairs_of("calibration", chosen, device), pairs_of("test", others, device)

    describe("dense", encoder, test, options.batch_size)
    importance = mope.MoPEImportance(
        encoder, calibration, metric=options.metric, groups=options.groups, batch_size=options.batch_size
    )
    scores = importance.table
    removed = mope.prune(encoder, importance, **asked)
    print(f"removed {removed.heads} heads and {removed.neurons} neurons")
    describe("pruned", encoder, test, options.batch_size)
    if options.output:
        found = mope.evaluate_retrieval(encoder, test, ks=(1,), batch_size=options.batch_size).recalls
        metrics = {"image to text R@1, percent": found["i2t_r1"], "text to image R@1, percent": found["t2i_r1"]}
        encoder.save_pretrained(options.output, base=name, metrics=metrics)
        scores.save(options.output / "scores.json")
        print(f"saved {options.output / 'model.safetensors'}, config.json, README.md and scores.json")


def arguments() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="NAME or NAME@TAG, as open_clip calls them")
    parser.add_argument("--pretrained", help="tag or file of weights, or 'none' for random ones; overrides @TAG")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--csv", type=Path, help="file with a caption a line")
    source.add_argument("--coco", type=Path, help="COCO captions JSON")
    parser.add_argument("--images", type=Path, help="folder of the images (with --csv, by default the file's own)")
    parser.add_argument("--csv-image", default="filepath", help="column of the image files")
    parser.add_argument("--csv-caption", default="title", help="column of the captions")
    parser.add_argument("--calibration", type=int, default=1000, help="images to score on")
    parser.add_argument("--test", type=Path, help="file of other images to report on, of the same kind")
    parser.add_argument("--max-skipped", type=float, default=0.1, help="share of images that may be unreadable")
    parser.add_argument("--head-ratio", type=float, default=0.3, help="share of the heads to remove")
    parser.add_argument("--ffn-ratio", type=float, default=0.5, help="share of the FFN neurons to remove")
    parser.add_argument("--global", dest="global_pruning", action="store_true", help="rank over all layers at once")
    parser.add_argument("--metric", default="contrastive_loss", help="contrastive_loss, recall_mean, recall@K")
    parser.add_argument("--groups", type=int, default=16, help="neuron groups per layer")
    parser.add_argument("--batch-size", type=int, default=64, help="sequences run at once")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--seed", type=int, default=0, help="of the split, and of random weights")
    parser.add_argument("--output", type=Path, help="folder for the pruned model")
    return parser


def main() -> None:
    """Reads the command line; what the user can mend is one line on stderr."""
    parser = arguments()
    options = parser.parse_args()
    if options.coco and not options.images:
        parser.error("--coco needs --images, the folder of its images")
    if options.calibration < 2:
        parser.error(f"--calibration must be at least 2; found {options.calibration}")
    torch.manual_seed(options.seed)
    try:
        run(options)
    except (mope.MopeError, OSError, RuntimeError, TypeError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
