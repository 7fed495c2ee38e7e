"""Latency of a dual encoder with swapped attention against the original, paired in one process.

    python benchmarks/latency_swap.py [--model ViT-B-32 ...] [--layers 2] [--batch 8] [--repeats 40] [--json FILE]

``--model tiny`` is the embedded tiny CLIP, others are open_clip's names, with random weights. Prints the median of the paired
ratios swapped / original per tower; towers in which nothing is swapped are left out.
"""

import argparse
import copy
import json
import statistics
import time
from pathlib import Path
from typing import Any

import open_clip
import torch
from torch import Tensor

import torch_pruning_mope as mope


def build(name: str, layers: int) -> Any:
    """A model, each list of its layers cut to some."""
    if name == "tiny":
        return mope.load_tiny_clip()
    model = open_clip.create_model(name, load_weights=False)
    with torch.device("meta"):
        found = mope.DualEncoder(open_clip.create_model(name, load_weights=False, device="meta"))
    names = {module: path for path, module in found.model.named_modules()}
    for tower in found.towers.values():
        for path in {names[block.siblings] for block in tower.blocks if block.siblings is not None}:
            siblings: Any = model.get_submodule(path)
            for index in reversed(range(layers or len(siblings), len(siblings))):
                del siblings[index]
    return model.eval()


@torch.inference_mode()
def seconds(encode: Any, inputs: Tensor) -> float:
    """One timed call."""
    start = time.perf_counter()
    encode(inputs)
    return time.perf_counter() - start


def measure(name: str, args: argparse.Namespace) -> list[dict[str, Any]]:
    """A row per tower in which something was swapped."""
    torch.manual_seed(0)
    original = build(name, args.layers)
    swapped = copy.deepcopy(original)
    encoder = mope.DualEncoder(swapped)
    example = encoder.example_inputs
    rows = []
    for tower, key in (("image", "images"), ("text", "tokens")):
        blocks = encoder.towers[tower].blocks  # type: ignore[index]
        if not any(isinstance(m, mope.surgery.PrunableAttention) for block in blocks for m in block.module.modules()):
            continue
        inputs = example[key].expand(args.batch, *example[key].shape[1:]).contiguous()
        encoders = [getattr(model, f"encode_{tower}") for model in (original, swapped)]
        for encode in encoders:
            seconds(encode, inputs)
        ratios = []
        for repeat in range(args.repeats):
            # Alternate which goes first, so that drift of the machine favours neither.
            first, second = encoders if repeat % 2 else encoders[::-1]
            times = {first: seconds(first, inputs), second: seconds(second, inputs)}
            ratios.append(times[encoders[1]] / times[encoders[0]])
        rows.append({"model": name, "tower": tower, "batch": args.batch, "ratio": statistics.median(ratios)})
        print(f"{name} {tower}: swapped / original = {rows[-1]['ratio']:.3f} (batch {args.batch})")
    return rows


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", nargs="+", default=["ViT-B-32"])
    parser.add_argument("--layers", type=int, default=2, help="cut every list of layers to this many; 0 keeps all")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=40)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    rows = [row for name in args.model for row in measure(name, args)]
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
