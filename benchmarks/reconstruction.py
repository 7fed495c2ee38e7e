"""Recall without training: what criteria remove, refitted in closed form, by share of the blocks' parameters kept.

    python benchmarks/reconstruction.py --json benchmarks/figures/reconstruction.json

The tiny CLIP. Every criterion gets the same reconstruction, on the same unlabelled pairs, which are none of the test pairs.
``MoPE, aware`` is ``mope.compress``: scores that know of the refit, in stages. ``MoPE, blind`` is the joint path of the plain
metric. Rows that the file has are not made again.
"""

import argparse
import copy
import json
import time
from pathlib import Path
from typing import Any

import _study
import torch

import torch_pruning_mope as mope
from torch_pruning_mope.cost import footprints

SETTINGS = {"steps": 0, "learning_rate": 0.0, "batch_size": 128, "train": 8, "pairs": 1000, "test": 2000, "groups": 8}
FLOOR_BELOW = 0.3
"""Shares at which rivals keep a head in each layer, without which they empty the attention of whole layers."""


def recall(study: _study.Study, encoder: mope.DualEncoder) -> float:
    """Mean R@1 of both directions on the test pairs, in percent."""
    return _study.mean_r1(_study.recall(encoder, study.test))


def aware(study: _study.Study, seed: int, share: float, many: mope.Pairs, folder: Path | None) -> dict[str, Any]:
    """The row of ``mope.compress``."""
    total = sum(footprint.parameters for footprint in footprints(study.dense).values())
    began = time.process_time()
    small = mope.compress(
        study.dense,
        study.calibration(seed),
        parameters=int(total - (1 - share) * study.size),
        reconstruct_pairs=many,
        groups=study.settings["groups"],
        path=None if folder is None else folder / f"{seed}-{share}",
        progress=False,
    )
    row = {"criterion": "MoPE, aware", "removed": None, "reconstructed": recall(study, small)}
    return row | {"kept": _study.blocks_size(small) / study.size, "seconds": time.process_time() - began}


def rival(study: _study.Study, seed: int, share: float, many: mope.Pairs, name: str) -> dict[str, Any]:
    """The row of a criterion that knows nothing of the refit."""
    if name == "MoPE, blind":
        units: Any = study.plan(seed, share)
    else:
        order, _ = study.order(seed, name)
        units = [study.cut(order, int(share * study.size), min_heads=int(share < FLOOR_BELOW))]
    small = study.built(units)
    removed = recall(study, small)
    began = time.process_time()
    mope.reconstruct(small, mope.DualEncoder(copy.deepcopy(study.dense.model)), many, progress=False)
    row = {"criterion": name, "removed": removed, "reconstructed": recall(study, small)}
    return row | {"kept": _study.blocks_size(small) / study.size, "seconds": time.process_time() - began}


def main() -> None:
    """Makes the rows that are missing and prints them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="file of the rows; those that are there are not made again")
    parser.add_argument("--shares", type=float, nargs="+", default=[0.5, 0.3, 0.2, 0.1])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument(
        "--criteria", nargs="+", default=["MoPE, aware", "MoPE, blind", "Hessian", "Taylor", "L1", "random"]
    )
    parser.add_argument("--pairs", type=int, default=1000, help="pairs that are scored on")
    parser.add_argument("--reconstruct-pairs", type=int, default=4000)
    parser.add_argument("--test", type=int, default=2000, help="pairs of the test gallery")
    parser.add_argument("--groups", type=int, default=8, help="neuron groups per MLP")
    parser.add_argument("--work", type=Path, help="folder of what goes on after an interruption")
    options = parser.parse_args()
    torch.set_num_threads(1)
    settings = SETTINGS | {"pairs": options.pairs, "test": options.test, "groups": options.groups}
    if options.work is not None:
        options.work.mkdir(parents=True, exist_ok=True)
    study = _study.Study(settings, options.json, options.work)
    if not study.has("dense"):
        study.add("dense", {"reconstructed": recall(study, study.dense)})
    for seed in options.seeds:
        many = mope.emoji_pairs("calibration", options.reconstruct_pairs, seed=seed)
        for share in options.shares:
            for name in options.criteria:
                key = {"seed": seed, "share": share, "criterion": name}
                if study.has("rows", **key):
                    continue
                found = (
                    aware(study, seed, share, many, options.work)
                    if name == "MoPE, aware"
                    else rival(study, seed, share, many, name)
                )
                study.add("rows", key | {"reconstruct_pairs": options.reconstruct_pairs} | found)
    print(json.dumps(study.found, indent=1))


if __name__ == "__main__":
    main()
