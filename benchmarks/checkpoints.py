"""How long a checkpoint takes to load, and how large it is, against the unpruned model.

    python benchmarks/checkpoints.py --json benchmarks/figures/checkpoints.json

The unpruned model is loaded from safetensors by open_clip, as anybody does, and in the least possible way: built on ``meta``
and given the tensors of the file, which are then mapped, not read. The pruned one is loaded by ``from_pretrained``, which reads
all of it twice: for the checksum, and into memory. All in turns, after one round that does not count; CPU time besides, since
clocks on a shared machine say little.
"""

import argparse
import json
import logging
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import open_clip
import torch
import torch_pruning as tp
from safetensors.torch import load_file, save_file

import torch_pruning_mope as mope


def least(name: str, file: Path) -> torch.nn.Module:
    """The unpruned model, as fast as can be."""
    with torch.device("meta"):
        model: torch.nn.Module = open_clip.create_model(name, load_weights=False, device="meta")
    model.load_state_dict(load_file(file), assign=True)
    return model


def timed(load: Callable[[], Any]) -> tuple[float, float]:
    """Seconds by the clock, and of all threads."""
    began, worked = time.perf_counter(), time.process_time()
    load()
    return time.perf_counter() - began, time.process_time() - worked


def measure(name: str, ratio: float, repeats: int, folder: Path) -> dict[str, Any]:
    """One model at one ratio."""
    torch.manual_seed(0)
    model, dense = open_clip.create_model(name).eval(), folder / "dense.safetensors"
    save_file(model.state_dict(), dense)
    encoder = mope.DualEncoder(model)
    size = sum(parameter.numel() for parameter in encoder.model.parameters())
    encoder.save_pretrained(folder / "whole", base=name)
    if ratio:
        random = mope.WeightedImportance(encoder, [(tp.importance.RandomImportance(), 1.0)])
        mope.prune(encoder, random, head_ratio=ratio, ffn_ratio=ratio)
    encoder.save_pretrained(folder / "pruned", base=name)
    left = sum(parameter.numel() for parameter in encoder.model.parameters())
    del encoder, model
    ways: dict[str, Callable[[], Any]] = {
        "open_clip": lambda: open_clip.create_model(name, pretrained=str(dense)),
        "least": lambda: least(name, dense),
        "whole": lambda: mope.DualEncoder.from_pretrained(folder / "whole"),
        "pruned": lambda: mope.DualEncoder.from_pretrained(folder / "pruned"),
    }
    times: dict[str, list[tuple[float, float]]] = {way: [] for way in ways}
    for round_ in range(repeats + 1):
        for way, load in ways.items():
            found = timed(load)
            if round_:
                times[way].append(found)
    size_on_disk = sum(file.stat().st_size for file in (folder / "pruned").rglob("*") if file.is_file())
    row: dict[str, Any] = {
        "model": name,
        "ratio": ratio,
        "parameters_before": size,
        "parameters": left,
        "bytes": size_on_disk,
        "bytes_per_parameter": size_on_disk / left,
        "bytes_whole_checkpoint": sum(file.stat().st_size for file in (folder / "whole").rglob("*") if file.is_file()),
        "repeats": repeats,
    }
    for at, kind in enumerate(("seconds", "cpu_seconds")):
        row[kind] = {way: statistics.median(found[at] for found in rows) for way, rows in times.items()}
        row[f"{kind}_pruned_over"] = {
            way: statistics.median(own[at] / other[at] for own, other in zip(times["pruned"], times[way], strict=True))
            for way in ("open_clip", "least", "whole")
        }
    return row


def main() -> None:
    """Measures and writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", nargs="+", default=["ViT-B-32"])
    parser.add_argument("--ratio", type=float, nargs="+", default=[0.5], help="share of heads and neurons removed")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    logging.getLogger().setLevel(logging.ERROR)
    rows = []
    for name in options.model:
        for ratio in options.ratio:
            with tempfile.TemporaryDirectory() as folder:
                rows.append(measure(name, ratio, options.repeats, Path(folder)))
            print(json.dumps(rows[-1], indent=1))
    if options.json:
        options.json.write_text(
            json.dumps({"threads": torch.get_num_threads(), "rows": rows}, indent=1) + "\n", "utf-8"
        )


if __name__ == "__main__":
    main()
