"""Time of a pruned model in deployment form against the original, each in its best form.

    python benchmarks/latency.py --model ViT-B-32 --json FILE [--plot FILE] [--threads 2] [--share 0.5]

The original is the model as its library builds it, nothing swapped. The pruned one has lost heads and neurons of both towers
until ``--share`` of each tower's multiply-adds are left, and is folded (``mope.fold``). Both run eagerly, compiled by inductor
with frozen weights, and by onnxruntime; what is pre-packed for one is pre-packed for the other. All six run in turn, round
after round, first one way and then the other, so that drift of the machine favours none.

Which units go is drawn at random, since weights may be random too, in the way plans come out: layers matter more or less
(log-normal), so do heads, and a neuron group matters more the later it comes in its layer's order. So widths differ from layer
to layer, and some layers lose all heads. Neurons that are left come in multiples of what suits the device.

``gain_bs32`` and ``gain_bs1``: time of both towers' best form before, over that after, at 32 inputs at once and at one; medians
of ratios within rounds. ``eager``, ``compiled`` and ``onnxruntime`` hold the same within one form.
"""

import argparse
import copy
import json
import logging
import math
import os
import platform
import random
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import torch
from torch import Tensor, nn

import torch_pruning_mope as mope
from torch_pruning_mope.deploy import fold
from torch_pruning_mope.scoring import enumerate_units
from torch_pruning_mope.towers import Unit

TOWERS = ("image", "text")
BATCHES = {32: (2, 5), 1: (15, 40)}
"""Batch sizes, each with the fewest and the most rounds."""
Runner = Callable[[Tensor], Any]


class Tower(nn.Module):
    """One encoder of a model."""

    def __init__(self, model: Any, tower: str) -> None:
        super().__init__()
        self.model, self.tower = model, tower

    def forward(self, inputs: Tensor) -> Tensor:
        """Embeds."""
        if hasattr(self.model, "encode_image"):
            return getattr(self.model, f"encode_{self.tower}")(inputs)  # type: ignore[no-any-return]
        found = getattr(self.model, f"get_{self.tower}_features")(inputs)
        return found if isinstance(found, Tensor) else found.pooler_output  # type: ignore[no-any-return]


def load(name: str) -> Any:
    """A model; random weights are fine."""
    logging.disable(logging.WARNING)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return mope.load_model(name).model.float().eval()


def drawn(encoder: mope.DualEncoder, share: float, multiple: int, seed: int) -> list[Unit]:
    """Units whose removal leaves that share of each tower's multiply-adds."""
    generator = random.Random(seed)
    units: list[Unit] = []
    before = mope.cost.footprints(encoder)
    for tower in TOWERS:
        own, ranked = [], []
        layers = [layer for layer in encoder.layers if layer.tower == tower]
        for layer in layers:
            neurons = 0 if layer.block.feed_forward is None else layer.block.feed_forward.num_units
            groups = max(1, neurons // max(multiple, neurons // 64 // multiple * multiple))
            own += [
                u for u in enumerate_units(encoder, ("head", "neurons"), {}, groups, (tower,)) if u.layer == layer.index
            ]
        cost = {kind: _cost(encoder, tower, kind, own, before[tower].multiply_adds) for kind in ("head", "neurons")}
        weight: dict[tuple[int, str], float] = {}
        last = {(u.layer, u.kind): u.index + 1 for u in own}
        for unit in own:
            scale = weight.setdefault((unit.layer, unit.kind), math.exp(generator.gauss(0, 0.5)))
            place = (unit.index + 0.5) / last[unit.layer, unit.kind]
            ranked.append(
                (scale * (math.exp(generator.gauss(0, 0.7)) if unit.kind == "head" else 2.5 * place**1.5), unit)
            )
        left = before[tower].multiply_adds * 1.0
        for _, unit in sorted(ranked, key=lambda pair: pair[0]):
            if left <= share * before[tower].multiply_adds:
                break
            left -= cost[unit.kind] * len(unit.channels)
            units.append(unit)
    return units


def _cost(encoder: mope.DualEncoder, tower: str, kind: str, units: list[Unit], before: int) -> float:
    """Multiply-adds per channel, counted on a copy without the units of a layer."""
    gone = [unit for unit in units if unit.kind == kind and unit.layer == 0]
    if not gone:
        return 0.0
    smaller = mope.DualEncoder(copy.deepcopy(encoder.model))
    mope.remove_units(smaller, gone)
    return (before - mope.cost.footprints(smaller)[tower].multiply_adds) / sum(len(unit.channels) for unit in gone)  # type: ignore[index]


def prunable(model: Any) -> tuple[mope.DualEncoder, mope.DualEncoder]:
    """A copy of the model, wrapped, and one without weights to count on."""
    encoder = mope.DualEncoder(copy.deepcopy(model))
    return encoder, mope.DualEncoder(copy.deepcopy(encoder.model).to("meta"))


def forms(
    modules: dict[str, nn.Module], example: Tensor, args: argparse.Namespace, folder: Path
) -> dict[tuple[str, str], Runner]:
    """What to time, by form and model."""
    found: dict[tuple[str, str], Runner] = {}
    for label, module in modules.items():
        found["eager", label] = module
        if "compiled" in args.forms:
            found["compiled", label] = torch.compile(module, dynamic=False)
        if "onnxruntime" in args.forms and args.device == "cpu":
            found["onnxruntime", label] = session(module, example, folder / f"{label}.onnx", args.threads)
    return {key: run for key, run in found.items() if key[0] in args.forms}


def session(module: nn.Module, example: Tensor, path: Path, threads: int) -> Runner:
    """A tower for any number of inputs in onnxruntime."""
    import onnxruntime

    shapes = ({0: torch.export.Dim("batch")},)
    with torch.no_grad():
        program: Any = torch.onnx.export(
            module, (example[:2].clone(),), dynamo=True, verbose=False, dynamic_shapes=shapes, input_names=["inputs"]
        )
    program.save(path)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    loaded = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda inputs: torch.from_numpy(loaded.run(None, {"inputs": inputs.numpy()})[0])


def seconds(run: Runner, inputs: Tensor) -> float:
    """One timed call."""
    start = time.perf_counter()
    run(inputs)
    if inputs.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - start


@torch.inference_mode()
def rounds(
    runners: dict[tuple[str, str], Runner], inputs: Tensor, fewest: int, most: int, limit: float
) -> dict[tuple[str, str], list[float]]:
    """Seconds of each, all in turn, round after round; checks first that the forms of a model agree."""
    outputs = {key: run(inputs) for key, run in runners.items()}
    for (form, label), output in outputs.items():
        first = next(found for (_, other), found in outputs.items() if other == label)
        error = float((output.float() - first.float()).abs().max() / first.float().abs().max())
        if not error < 1e-3:
            raise RuntimeError(f"{form} of the {label} model puts out something else: {error:.1e}")
    times: dict[tuple[str, str], list[float]] = {key: [] for key in runners}
    began = time.perf_counter()
    for number in range(most):
        if number >= fewest and time.perf_counter() - began > limit:
            break
        for key in list(runners) if number % 2 else reversed(list(runners)):
            times[key].append(seconds(runners[key], inputs))
    return times


def gain(times: dict[str, dict[tuple[str, str], list[float]]], form: str | None) -> float:
    """Median over rounds of the time of both towers before over after, in one form or in the best of each."""

    def own(tower: str, label: str) -> list[float]:
        of = {key: taken for key, taken in times[tower].items() if key[1] == label and form in {None, key[0]}}
        return min(of.values(), key=statistics.median)

    count = min(len(taken) for tower in times.values() for taken in tower.values())
    ratios = [
        sum(own(tower, "original")[i] for tower in times) / sum(own(tower, "pruned")[i] for tower in times)
        for i in range(count)
    ]
    return statistics.median(ratios)


def widths(encoder: mope.DualEncoder) -> dict[str, Any]:
    """Heads and neurons per layer."""
    found: dict[str, Any] = {}
    for tower in TOWERS:
        blocks = encoder.towers[tower].blocks
        found[tower] = {
            "width": encoder.towers[tower].width,
            "heads": [0 if b.attention is None else b.attention.num_units for b in blocks],
            "neurons": [0 if b.feed_forward is None else b.feed_forward.num_units for b in blocks],
        }
    return found


def machine(args: argparse.Namespace) -> dict[str, Any]:
    """What it ran on."""
    names = [
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if "model name" in line
    ]
    return {
        "device": torch.cuda.get_device_name() if args.device == "cuda" else (names or [platform.processor()])[0],
        "threads": args.threads,
        "cores": os.cpu_count(),
        "load_average": os.getloadavg()[0],
    }


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Everything."""
    torch.manual_seed(args.seed)
    original = load(args.model)
    encoder, counted = prunable(original)
    before, whole = mope.cost.footprints(counted), widths(encoder)
    multiple = args.round_to or (64 if args.device == "cuda" else 16)
    units = drawn(counted, args.share, multiple, args.seed)
    mope.remove_units(counted, units)
    after = mope.cost.footprints(counted)
    mope.remove_units(encoder, units)
    folded = fold(encoder)
    inputs = {"image": encoder.example_inputs["images"], "text": encoder.example_inputs["tokens"]}
    left, load_average = widths(encoder), machine(args)
    models = {"original": original.to(args.device), "pruned": folded.to(args.device)}
    cells, times = [], {batch: {} for batch in BATCHES}  # type: ignore[var-annotated]
    for tower in TOWERS:
        examples = inputs[tower].expand(max(BATCHES), *inputs[tower].shape[1:]).contiguous().to(args.device)
        if tower == "image":
            examples = torch.randn(examples.shape, generator=torch.Generator().manual_seed(0)).to(args.device)
        modules: dict[str, nn.Module] = {label: Tower(model, tower).eval() for label, model in models.items()}
        with tempfile.TemporaryDirectory() as folder:
            runners = forms(modules, examples, args, Path(folder))
            for batch, (fewest, most) in BATCHES.items():
                torch._dynamo.reset()  # a graph for each batch size
                taken = rounds(runners, examples[:batch].contiguous(), fewest, most, args.seconds)
                times[batch][tower] = taken
                for (form, label), values in taken.items():
                    cells.append(
                        {"tower": tower, "batch": batch, "form": form, "model": label, "ms": statistics.median(values) * 1e3,
                         "rounds": len(values)}
                    )  # fmt: skip
                    print(f"{tower} bs{batch} {form} {label}: {statistics.median(values) * 1e3:.2f} ms", flush=True)
    result: dict[str, Any] = {
        "model": args.model,
        "macs_ratio": sum(f.multiply_adds for f in after.values()) / sum(f.multiply_adds for f in before.values()),
        "parameters_ratio": sum(f.parameters for f in after.values()) / sum(f.parameters for f in before.values()),
    }
    result |= {f"gain_bs{batch}": gain(times[batch], None) for batch in BATCHES}
    for form in args.forms:
        if any(cell["form"] == form for cell in cells):
            result[form] = {f"gain_bs{batch}": gain(times[batch], form) for batch in BATCHES}
    for tower in TOWERS:
        result[tower] = {
            "macs_ratio": after[tower].multiply_adds / before[tower].multiply_adds,
            **{f"gain_bs{batch}": gain({tower: times[batch][tower]}, None) for batch in BATCHES},
        }
    names = ("torch", "onnxruntime", "open_clip_torch", "timm", "torch-pruning-mope")
    return result | {
        "machine": load_average,
        "versions": {name: version(name) for name in names},
        "round_to": multiple,
        "widths": {"original": whole, "pruned": left},
        "cells": cells,
    }


def plot(result: dict[str, Any], path: Path) -> None:
    """Gains by form and batch size."""
    shown = [form for form in ("eager", "compiled", "onnxruntime") if form in result]
    figure, axes = plt.subplots(figsize=(6.4, 3.4), layout="constrained")
    for offset, (key, label, colour) in enumerate(
        (("gain_bs32", "32 at once", "#0072B2"), ("gain_bs1", "one at a time", "#E69F00"))
    ):
        values = [result[key], *(result[form][key] for form in shown)]
        bars = axes.bar(
            [i + (offset - 0.5) * 0.38 for i in range(len(values))], values, 0.36, label=label, color=colour
        )
        axes.bar_label(bars, fmt="%.2f", fontsize=8)
    axes.axhline(1 / result["macs_ratio"], color="0.4", linestyle=":", label="multiply-adds")
    axes.set_xticks(range(len(shown) + 1), ["best of each", *shown])
    axes.set_ylabel("times as fast as the original")
    axes.set_title(
        f"{result['model']}, {result['macs_ratio']:.0%} of the multiply-adds, {result['machine']['threads']} thread(s)"
    )
    axes.legend(frameon=False, fontsize=8, ncols=3, loc="upper center", bbox_to_anchor=(0.5, -0.1))
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)


def main() -> None:
    """Measures, prints, writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="ViT-B-32", help="any name that mope.load_model takes")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--share", type=float, default=0.5, help="of each tower's multiply-adds to keep")
    parser.add_argument("--round-to", type=int, help="multiple of neurons; by default 16 on CPUs, 64 on GPUs")
    parser.add_argument(
        "--seconds", type=float, default=15.0, help="after the fewest rounds, stop a series after this long"
    )
    parser.add_argument("--forms", nargs="+", default=["eager", "compiled", "onnxruntime"])
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    import torch._inductor.config as inductor

    inductor.freezing = True  # weights are constants: pre-packed
    began = time.perf_counter()
    result = measure(args)
    print({key: value for key, value in result.items() if key not in {"cells", "widths"}})
    print(f"{time.perf_counter() - began:.0f} s")
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + "\n")
    if args.plot:
        plot(result, args.plot)


if __name__ == "__main__":
    main()
