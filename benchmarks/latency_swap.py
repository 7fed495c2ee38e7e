"""Latency of a dual encoder with swapped attention against the original, paired in one process.

    python benchmarks/latency_swap.py [--model ViT-B-32] [--layers 2] [--batch 8] [--repeats 40] [--json FILE]

``--model tiny`` is the embedded tiny CLIP. Prints the median of the paired ratios swapped / original per tower.
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
    """A model by open_clip's name, cut to some layers, with random weights; or the tiny CLIP."""
    if name == "tiny":
        return mope.load_tiny_clip()
    config = open_clip.get_model_config(name)
    if layers:
        config["vision_cfg"]["layers"] = config["text_cfg"]["layers"] = layers
    return open_clip.CLIP(**config).eval()


@torch.inference_mode()
def seconds(encode: Any, inputs: Tensor) -> float:
    """One timed call."""
    start = time.perf_counter()
    encode(inputs)
    return time.perf_counter() - start


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="ViT-B-32")
    parser.add_argument("--layers", type=int, default=2, help="cut both towers to this many layers; 0 keeps all")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=40)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.manual_seed(0)
    original = build(args.model, args.layers)
    swapped = copy.deepcopy(original)
    example = mope.DualEncoder(swapped).example_inputs
    rows = []
    for tower, key in (("image", "images"), ("text", "tokens")):
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
        rows.append({"model": args.model, "tower": tower, "batch": args.batch, "ratio": statistics.median(ratios)})
        print(f"{args.model} {tower}: swapped / original = {rows[-1]['ratio']:.3f} (batch {args.batch})")
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
