"""Exported files in float32 and int8: recall, bytes and time of the very files.

    python benchmarks/int8.py tiny --json FILE [--shares 1 0.5 0.3 0.2] [--steps 150]
    python benchmarks/int8.py speed --json FILE [--models ViT-B-32 ViT-B-16] [--threads 2]
    python benchmarks/int8.py plan --json FILE

``tiny``: the shipped tiny CLIP is compressed to a share of its parameters (token embeddings not counted; 1,000 calibration
pairs), distilled towards itself, and exported. int8 is calibrated on 256 calibration pairs of three seeds; recall is
mean R@1 of 2,000 test pairs, no pair of which is a calibration or training pair. Bytes are of both ONNX files, milliseconds
of processor time of both encoders at batch 1 on one thread, the median of 50 runs in turn with the other files.

``speed``: random weights, half of the multiply-adds of each tower removed (see latency.py). Float files of the dense model and
both kinds of files of the pruned one run in turn, round after round; ratios are medians over rounds. With one thread they are
of processor time, with more of wall time, which is worth reporting only from a machine that does nothing else. ``cosine`` is of
int8 to float embeddings of the pruned model on emoji scenes.

``plan``: half of the dense int8 files' time at batch 1 on one thread as the budget, measured on int8 files while planning; then
dense and planned files in turn.
"""

import argparse
import dataclasses
import json
import statistics
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch

import torch_pruning_mope as mope
from torch_pruning_mope.deploy import shipped_latencies

CALIBRATION = 256


def sessions(folder: Path, threads: int) -> list[Any]:
    """Both encoders of a folder."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    return [
        onnxruntime.InferenceSession(str(folder / f"{tower}.onnx"), options, providers=["CPUExecutionProvider"])
        for tower in ("image", "text")
    ]


def seconds(found: Sequence[Any], inputs: Sequence[np.ndarray], threads: int) -> float:
    """Time of both encoders once: processor time of one thread, wall time of several."""
    clock = time.thread_time if threads == 1 else time.perf_counter
    begin = clock()
    for session, batch in zip(found, inputs, strict=True):
        session.run(None, {"inputs": batch})
    return clock() - begin


def in_turn(
    own: dict[str, list[Any]], inputs: Sequence[np.ndarray], rounds: int, threads: int
) -> dict[str, list[float]]:
    """Times of several pairs of encoders, round after round, each round in the other direction."""
    times: dict[str, list[float]] = {name: [] for name in own}
    for place in range(rounds + 2):
        for name in list(own)[:: 1 if place % 2 else -1]:
            times[name].append(seconds(own[name], inputs, threads))
    return {name: found[2:] for name, found in times.items()}


def size(folder: Path) -> int:
    """Bytes of both encoders."""
    return sum(path.stat().st_size for path in folder.glob("*.onnx*"))


def student(share: float, steps: int, scored: int) -> mope.DualEncoder:
    """The tiny CLIP compressed to a share of its parameters, and distilled."""
    dense = mope.DualEncoder(mope.load_tiny_clip())
    if share == 1:
        return dense
    pairs, train = mope.emoji_pairs("calibration", scored), mope.emoji_pairs("train", 6 * scored)
    encoder = mope.compress(dense, pairs, parameters=share, groups=8, round_to=8, progress=False)
    mope.distill(encoder, train, teacher=dense, steps=steps, batch_size=128, learning_rate=5e-4, progress=False)
    return encoder


def tiny(shares: Sequence[float], steps: int, scored: int, tested: int, seeds: int, file: Path) -> None:
    """Rows of the tiny CLIP, written as they are found."""
    test = mope.emoji_pairs("test", tested)
    rows: list[dict[str, Any]] = json.loads(file.read_text())["rows"] if file.exists() else []
    for share in shares:
        if any(row["share"] == share for row in rows):
            continue
        model = student(share, steps, scored).model
        with tempfile.TemporaryDirectory() as root:
            folders = {"float32": Path(root) / "float32"}
            mope.export(model, folders["float32"])
            measured = []
            for seed in range(seeds):
                folders[f"int8, seed {seed}"] = folder = Path(root) / str(seed)
                pairs = mope.emoji_pairs("calibration", CALIBRATION, seed)
                mope.export(model, folder, quantize="int8", pairs=pairs, test_pairs=test, max_drop=100.0)
                about = json.loads((folder / "deployment.json").read_text())["quantization"]
                measured.append(about["measured"])
            one = [test.images[:1].numpy(), test.tokens[:1].numpy()]
            loaded = {name: sessions(folder, 1) for name, folder in folders.items()}
            times = in_turn(loaded, one, 50, 1)
            for name, folder in folders.items():
                recall = measured[0]["recall_float"] if name == "float32" else measured[int(name[-1])]["recall"]
                ms = 1000 * statistics.median(times[name])
                rows.append({"share": share, "files": name, "r1": recall, "bytes": size(folder), "ms": ms})
                print(rows[-1], flush=True)
        write(file, rows)


def speed(names: Sequence[str], threads: int, file: Path) -> None:
    """Paired ratios of ViTs."""
    from latency import drawn, load

    rows: list[dict[str, Any]] = []
    for name in names:
        encoder = mope.DualEncoder(load(name))
        loaded = mope.load_model(name)
        scenes = mope.emoji_scenes("calibration", 96)
        from PIL import Image

        images = torch.stack([loaded.preprocess(Image.fromarray(pixels)) for pixels, _ in scenes])
        tokens = loaded.tokenizer([caption for _, caption in scenes])
        pairs, test = mope.Pairs(images[:64], tokens[:64]), mope.Pairs(images[64:], tokens[64:])
        with tempfile.TemporaryDirectory() as root:
            folders = {part: Path(root) / part for part in ("dense", "pruned", "int8")}
            mope.export(encoder, folders["dense"])
            mope.remove_units(encoder, drawn(encoder, 0.5, 16, 0))
            mope.export(encoder, folders["pruned"])
            mope.export(encoder, folders["int8"], quantize="int8", pairs=pairs, test_pairs=test, max_drop=100.0)
            about = json.loads((folders["int8"] / "deployment.json").read_text())["quantization"]
            row: dict[str, Any] = {"model": name, "cosine": about["measured"]["cosine"]}
            row |= {f"bytes_{part}": size(folder) for part, folder in folders.items()}
            own = {part: sessions(folder, threads) for part, folder in folders.items()}
            for batch, rounds in ((32, 7), (1, 40)):
                inputs = [images[:batch].numpy(), tokens[:batch].numpy()]
                times = in_turn(own, inputs, rounds, threads)
                for part in ("pruned", "int8"):
                    ratios = [whole / cut for whole, cut in zip(times["dense"], times[part], strict=True)]
                    row[f"{part}_bs{batch}"] = statistics.median(ratios)
            rows.append(row)
            print(row, flush=True)
        write(file, rows)


def plan(file: Path) -> None:
    """A row of a plan whose budget is half the time of the dense model's int8 files."""
    encoder, pairs = mope.DualEncoder(mope.load_tiny_clip()), mope.emoji_pairs("calibration", CALIBRATION)
    table = mope.score(encoder, pairs, groups=8, kinds=("head", "neurons"), interaction="joint", progress=False)
    timer = partial(shipped_latencies, quantize="int8", pairs=pairs, threads=1, repeats=100)
    with tempfile.TemporaryDirectory() as root:
        folders = {part: Path(root) / part for part in ("dense", "planned")}
        mope.export(encoder, folders["dense"], quantize="int8", pairs=pairs)
        mope.make_plan(encoder, table, latency="50%", round_to="auto", timer=timer).apply(encoder)
        mope.export(encoder, folders["planned"], quantize="int8", pairs=pairs)
        one = [pairs.images[:1].numpy(), pairs.tokens[:1].numpy()]
        times = in_turn({part: sessions(folder, 1) for part, folder in folders.items()}, one, 100, 1)
    ratios = [own / whole for whole, own in zip(times["dense"], times["planned"], strict=True)]
    row = {"asked": 0.5, "found": statistics.median(ratios), "counts": dataclasses.asdict(encoder.counts())}
    print(row)
    write(file, [row])


def write(file: Path, rows: list[dict[str, Any]]) -> None:
    """Writes rows and what they were measured with."""
    about = {name: version(name) for name in ("torch", "onnxruntime", "onnx")}
    file.write_text(json.dumps({"versions": about, "rows": rows}, indent=1) + "\n")


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("tiny", "speed", "plan"))
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--shares", type=float, nargs="+", default=[1.0, 0.5, 0.3, 0.2])
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument(
        "--scored", type=int, default=1000, help="pairs that are scored on, and a sixth of those trained on"
    )
    parser.add_argument("--test", type=int, default=2000, help="pairs of the test gallery")
    parser.add_argument("--seeds", type=int, default=3, help="draws of calibration pairs of int8")
    parser.add_argument("--models", nargs="+", default=["ViT-B-32", "ViT-B-16"])
    parser.add_argument("--threads", type=int, default=2)
    chosen = parser.parse_args()
    if chosen.part == "tiny":
        tiny(chosen.shares, chosen.steps, chosen.scored, chosen.test, chosen.seeds, chosen.json)
    elif chosen.part == "plan":
        plan(chosen.json)
    else:
        speed(chosen.models, chosen.threads, chosen.json)


if __name__ == "__main__":
    main()
