"""How much faster is the exact engine than evaluating the whole model once per unit? Both interleaved in one process.

    python benchmarks/scoring.py --model ViT-B-32 --captions 5 [--images 16] [--layers 6] --json FILE --plot FILE

``--model`` is ``tiny`` (the CLIP that ships, emoji scenes), any open_clip name, or ``transformers-clip``, its ``CLIPModel`` of
ViT-B-32's size (random weights, random pixels, captions of 8 to 16 tokens). All heads and 16 neuron groups per MLP of both
towers are scored once by the engine; every few seconds it pauses for one evaluation of the plain loop (mask one unit, encode
all images and captions in full, compute the metric, unmask) and for matrix products of the engine's shapes. The plain loop's
time per unit does not depend on the unit, so its median is multiplied by the number of units. ``--budgets`` runs scoring again
in fresh processes, each within a stated memory budget; ``--ranks 2`` compares two processes under torchrun with one;
``--aware`` times scores that know of the refit against plain ones, in turn; ``--effect bfloat16`` tells what autocast does to
scores.

JSON keys: ``plain_over_engine`` and ``theory`` (ratio of counted multiply-adds), ``fraction_of_peak`` (of the median product
of the engine's shapes), ``peak_bytes`` (engine, over model and pairs), ``predicted_over_measured`` (the cost model), and more.
"""

import argparse
import ctypes
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import open_clip
import torch
from torch import Tensor

import torch_pruning_mope as mope
from torch_pruning_mope.scoring import (
    Meter,
    PlainEngine,
    PrefixEngine,
    enumerate_units,
    estimate_cost,
    nested_ablations,
    single_ablation,
)
from torch_pruning_mope.scoring._engine import default_batch_size

GROUPS = 16


def build(name: str, layers: int | None) -> mope.DualEncoder:
    """The tiny CLIP, or an open_clip model with random weights, whose towers may be cut to some layers."""
    torch.manual_seed(0)
    if name == "tiny":
        return mope.DualEncoder(mope.load_tiny_clip())
    if name == "transformers-clip":
        from transformers import CLIPConfig, CLIPModel

        size = {} if layers is None else {"num_hidden_layers": layers}
        return mope.DualEncoder(CLIPModel(CLIPConfig(vision_config=size, text_config=size)).eval())
    config = open_clip.get_model_config(name)
    if layers:
        config["vision_cfg"]["layers"] = config["text_cfg"]["layers"] = layers
    model = open_clip.CLIP(
        embed_dim=config["embed_dim"],
        vision_cfg=open_clip.CLIPVisionCfg(**config["vision_cfg"]),
        text_cfg=open_clip.CLIPTextCfg(**config["text_cfg"]),
        quick_gelu=config.get("quick_gelu", False),
    )
    return mope.DualEncoder(model.eval())


def draw(name: str, encoder: mope.DualEncoder, images: int, captions: int) -> mope.Pairs:
    """Emoji scenes, or random pixels with random captions of 8 to 16 tokens, start and end included."""
    if name == "tiny":
        return mope.emoji_pairs("calibration", images, seed=0)
    generator = torch.Generator().manual_seed(0)
    shape = encoder.example_inputs["images"].shape[1:]
    pixels = torch.randn(images, *shape, generator=generator)
    count, context = images * captions, encoder.example_inputs["tokens"].shape[1]
    end = encoder.model.config.text_config.vocab_size - 1 if "transformers" in name else encoder.model.vocab_size - 1
    lengths = torch.randint(8, 17, (count, 1), generator=generator)
    place = torch.arange(context)
    tokens = torch.randint(1, end - 1, (count, context), generator=generator)
    tokens = torch.where(place < lengths - 1, tokens, torch.where(place == lengths - 1, end, 0))
    tokens[:, 0] = end - 1
    return mope.Pairs(pixels, tokens, torch.arange(images).repeat_interleave(captions))


class Peak:
    """Peak memory over a baseline: the allocator's on CUDA, else the process's resident set, sampled in a thread."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.bytes = device, 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def _now(self) -> int:
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        resident = Path("/proc/self/statm").read_text(encoding="utf-8").split()[1]
        return int(resident) * 4096

    def _watch(self) -> None:
        while not self._stop.wait(0.002):
            self.bytes = max(self.bytes, self._now() - self._before)

    def __enter__(self) -> "Peak":
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        self._before = self._now()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self.bytes = max(self.bytes, self._now() - self._before)


def synchronise(device: torch.device) -> None:
    """Waits for the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class Products:
    """Matrix products of the shapes that the engine's linear layers have: rows of a batch by each weight."""

    def __init__(self, encoder: mope.DualEncoder, pairs: mope.Pairs, dtype: torch.dtype) -> None:
        self.calls: list[tuple[float, Callable[[], Tensor]]] = []
        device, engine = encoder.device, PrefixEngine(encoder)
        for name, inputs in (("image", pairs.images), ("text", pairs.tokens)):
            walk = engine.walk(name)  # type: ignore[arg-type]
            lengths = walk.lengths(inputs)
            tokens = walk.tokens(walk.stem(inputs[:1].to(device))) if lengths is None else int(lengths.float().mean())
            count = default_batch_size(walk, inputs, device)
            d = encoder.towers[name].blocks[0].feed_forward.output.out_features  # type: ignore[index]
            for m, k, n in ((4, d, d), (1, d, 4 * d), (1, 4 * d, d)):  # q, k, v, out; MLP
                x = torch.randn(count * tokens, k, device=device, dtype=dtype)
                w = torch.randn(n, k, device=device, dtype=dtype)
                self.calls.append((m, lambda x=x, w=w: torch.nn.functional.linear(x, w)))
        self.device = device

    def flops_per_second(self) -> float:
        """Over all shapes, weighed as in a block."""
        flops = seconds = 0.0
        for times, call in self.calls:
            call()
            synchronise(self.device)
            began = time.perf_counter()
            out = call()
            synchronise(self.device)
            seconds += times * (time.perf_counter() - began)
            flops += times * 2 * out.numel() * call.__defaults__[0].shape[1]
        return flops / seconds


def ablations_of(encoder: mope.DualEncoder) -> list[Any]:
    """All heads, and nested neuron groups in their own order."""
    units = enumerate_units(encoder, ("head", "neurons"), {}, GROUPS, ("image", "text"))
    found = [single_ablation(unit) for unit in units if unit.kind == "head"]
    for layer in encoder.layers:
        mine = [u for u in units if u.kind == "neurons" and (u.tower, u.layer) == (layer.tower, layer.index)]
        found += nested_ablations(mine)
    return found


def compare(options: argparse.Namespace) -> dict[str, Any]:
    """The engine over all units, with plain evaluations and matrix products in between."""
    encoder = build(options.model, options.layers)
    encoder.model.to(options.device)
    pairs = draw(options.model, encoder, options.images, options.captions)
    dtype = getattr(torch, options.autocast) if options.autocast else None
    metric = mope.metrics.Recall()
    ablations = ablations_of(encoder)
    cost = estimate_cost(encoder, pairs, rewire="none", autocast=options.autocast)
    products = Products(encoder, pairs, dtype or torch.float32)
    plain = PlainEngine(encoder, dtype=dtype)

    def plain_once(ablation: Any) -> float:
        began = time.perf_counter()
        both = {name: [ablation] if ablation.tower == name else [] for name in ("image", "text")}
        images = plain.embeddings("image", pairs.images, both["image"])
        texts = plain.embeddings("text", pairs.tokens, both["text"])
        value = metric(images, texts, pairs.image_index.to(images.device))
        del value
        synchronise(encoder.device)
        return time.perf_counter() - began

    plain_times, peaks = [], [products.flops_per_second()]
    plain_once(ablations[0])
    engine_seconds = 0.0
    with Peak(encoder.device) as peak:
        synchronise(encoder.device)
        began = time.perf_counter()
        meter = Meter(PrefixEngine(encoder, dtype=dtype), pairs, metric, encoder.device)
        losses = meter.losses(ablations)
        pauses = {round((i + 0.5) * len(ablations) / options.plain) for i in range(options.plain)}
        for i in range(len(ablations)):
            next(losses)
            if i not in pauses:
                continue
            synchronise(encoder.device)
            engine_seconds += time.perf_counter() - began
            plain_times.append(plain_once(ablations[i]))
            peaks.append(products.flops_per_second())
            began = time.perf_counter()
        synchronise(encoder.device)
        engine_seconds += time.perf_counter() - began
    plain_seconds = statistics.median(plain_times) * len(ablations)
    matmul = statistics.median(peaks)
    return {
        "units": len(ablations),
        "plain_evaluations_timed": len(plain_times),
        "plain_seconds_extrapolated": plain_seconds,
        "engine_seconds": engine_seconds,
        "plain_over_engine": plain_seconds / engine_seconds,
        "theory": cost.plain_multiply_adds / cost.multiply_adds,
        "engine_multiply_adds": cost.multiply_adds,
        "matmul_flops_per_second": matmul,
        "fraction_of_peak": 2 * cost.multiply_adds / engine_seconds / matmul,
        "plain_fraction_of_peak": 2 * cost.plain_multiply_adds / plain_seconds / matmul,
        "peak_bytes": peak.bytes,
        "predicted_over_measured": cost.seconds / engine_seconds,
        "device": torch.cuda.get_device_name() if encoder.device.type == "cuda" else platform.machine(),
        "threads": torch.get_num_threads(),
        "autocast": options.autocast,
        "torch": torch.__version__,
    }


def within(options: argparse.Namespace, budget: str | None) -> dict[str, Any]:
    """Peak memory and scores under one budget; run in a process of its own."""
    encoder = build(options.model, options.layers)
    pairs = draw(options.model, encoder, options.images, options.captions)
    for name, inputs in (("image", pairs.images), ("text", pairs.tokens)):
        PlainEngine(encoder).embeddings(name, inputs[:64])  # type: ignore[arg-type]  # libraries' own memory, on first use
    if sys.platform == "linux":
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    arguments: dict[str, Any] = {"groups": 2, "rewire": "none", "towers": options.towers, "progress": False}
    with Peak(encoder.device) as peak:
        began = time.perf_counter()
        table = mope.score(encoder, pairs, memory=budget, metric="contrastive_loss", **arguments)
        seconds = time.perf_counter() - began
    return {"budget": budget, "peak_bytes": peak.bytes, "seconds": seconds, "scores": [s.value for s in table.scores]}


def budgets(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Each budget in a fresh process; states whether the scores are those of the first."""
    rows: list[dict[str, Any]] = []
    for budget in options.budgets:
        command = [sys.executable, __file__, "--model", options.model, "--images", str(options.images)]
        command += ["--captions", str(options.captions), "--within", budget, "--towers", *options.towers]
        command += ["--layers", str(options.layers)] if options.layers else []
        # glibc keeps freed blocks of up to 32 MiB, which the resident set then counts; mapped ones go back at once.
        environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536"}
        done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)  # noqa: S603
        row = json.loads(done.stdout.splitlines()[-1])
        scores = row.pop("scores")
        rows.append(row | {"peak_over_budget": row["peak_bytes"] / in_bytes(budget), "_scores": scores})
        rows[-1]["largest_difference"] = max(abs(a - b) for a, b in zip(scores, rows[0]["_scores"], strict=True))
        print({k: v for k, v in rows[-1].items() if k != "_scores"}, flush=True)
    return [{k: v for k, v in row.items() if k != "_scores"} for row in rows]


def shared_out(options: argparse.Namespace) -> dict[str, Any]:
    """One rank against several, one thread each, alternately; seconds of the scoring call alone, of the slowest rank."""
    seconds: dict[int, list[float]] = {1: [], options.ranks: []}
    tables: list[bytes] = []
    for _ in range(options.repeats):
        for world, times in seconds.items():
            with tempfile.TemporaryDirectory() as folder:
                command = [
                    sys.executable,
                    "-m",
                    "torch.distributed.run",
                    "--standalone",
                    "--nproc-per-node",
                    str(world),
                ]
                command += [__file__, "--model", options.model, "--images", str(options.images), "--into", folder]
                command += ["--captions", str(options.captions)]
                command += ["--layers", str(options.layers)] if options.layers else []
                environment = os.environ | {"OMP_NUM_THREADS": "1"}
                subprocess.run(command, check=True, capture_output=True, env=environment)  # noqa: S603
                times.append(max(float(file.read_text()) for file in Path(folder).glob("*.seconds")))
                tables += [file.read_bytes() for file in Path(folder).glob("*.json")]
            print(world, "rank(s):", times[-1], flush=True)
    one, many = (statistics.median(times) for times in seconds.values())
    return {"seconds": seconds, "speed_up": one / many, "tables_identical": all(table == tables[0] for table in tables)}


def score_into(options: argparse.Namespace) -> None:
    """What each rank does."""
    encoder = build(options.model, options.layers)
    pairs = draw(options.model, encoder, options.images, options.captions)
    encoder.embed("image", pairs.images[:2])
    rank = os.environ["RANK"]
    began = time.perf_counter()
    table = mope.score(encoder, pairs, metric="contrastive_loss", progress=False)
    Path(options.into, f"{rank}.seconds").write_text(str(time.perf_counter() - began))
    table.save(Path(options.into, f"{rank}.json"))


def aware(options: argparse.Namespace) -> dict[str, Any]:
    """Time of scores that know of the refit over that of plain ones, in turn."""
    encoder = build(options.model, options.layers)
    pairs = draw(options.model, encoder, options.images, options.captions)
    seconds: dict[str, list[float]] = {"plain": [], "aware": []}
    for _ in range(options.repeats):
        for name, times in seconds.items():
            began = time.perf_counter()
            arguments: dict[str, Any] = {"metric": "contrastive_loss", "groups": GROUPS, "progress": False}
            mope.score(encoder, pairs, reconstruct=name == "aware", **arguments)
            times.append(time.perf_counter() - began)
    ratios = [found / plain for plain, found in zip(seconds["plain"], seconds["aware"], strict=True)]
    return {"seconds": seconds, "aware_over_plain": statistics.median(ratios)}


def effect(options: argparse.Namespace) -> dict[str, Any]:
    """What autocast does to the scores of heads, against their own standard errors, and what it saves."""
    encoder = build(options.model, options.layers)
    pairs = draw(options.model, encoder, options.images, options.captions)
    found = {}
    for metric in ("recall_mean", "contrastive_loss"):
        tables, seconds = [], []
        for autocast in (None, options.effect):
            began = time.perf_counter()
            arguments: dict[str, Any] = {"kinds": ("head",), "metric": metric, "progress": False}
            tables.append(mope.score(encoder, pairs, autocast=autocast, **arguments))
            seconds.append(time.perf_counter() - began)
        full, cast = (torch.tensor([score.value for score in table.scores]) for table in tables)
        errors = torch.tensor([score.stderr for score in tables[0].scores])
        kept = {}
        for ratio in (0.3, 0.5):
            count = round(ratio * len(full))
            gone = [set(values.argsort(stable=True)[:count].tolist()) for values in (full, cast)]
            kept[str(ratio)] = 1 - len(gone[0] - gone[1]) / (len(full) - count)
        found[metric] = {
            "largest_difference": float((full - cast).abs().max()),
            "median_difference_over_standard_error": float(((full - cast).abs() / errors.clamp(min=1e-9)).median()),
            "same_kept_set": kept,
            "speed_up": seconds[0] / seconds[1],
        }
    return {"autocast": options.effect, "effect": found}


def in_bytes(text: str) -> int:
    """The number of bytes that a text like 512MiB stands for."""
    return int(float(text[:-3]) * {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}[text[-3]])


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """Measured and counted ratios side by side."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(7, 0.6 * len(rows) + 1.4), layout="constrained")
    layers = [f" of {r['layers']} layers" if r["layers"] else "" for r in rows]
    names = [f"{r['model']}{cut}, {r['captions']} caption(s) per image" for r, cut in zip(rows, layers, strict=True)]
    at = range(len(rows))
    axis.barh([y + 0.2 for y in at], [r["plain_over_engine"] for r in rows], 0.4, label="measured")
    axis.barh([y - 0.2 for y in at], [r["theory"] for r in rows], 0.4, label="counted multiply-adds", color="silver")
    axis.set_yticks(list(at), names)
    axis.set_xlabel("plain loop / exact engine")
    axis.legend(frameon=False)
    axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=120)


def main() -> None:
    """Runs one case; the plot also shows those whose files ``scoring*.json`` lie beside this one's."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--images", type=int, help="default: 1,000 for the tiny CLIP, else 16")
    parser.add_argument("--captions", type=int, default=1, help="per image")
    parser.add_argument("--layers", type=int, help="cut both towers to so many layers")
    parser.add_argument("--plain", type=int, default=10, help="evaluations of the plain loop to time")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--autocast", choices=["bfloat16", "float16"])
    parser.add_argument("--effect", choices=["bfloat16", "float16"], help="what autocast does to the scores")
    parser.add_argument("--budgets", nargs="*", default=[], help="memory budgets to try, such as 512MiB")
    parser.add_argument("--towers", nargs="*", default=["image", "text"], help="for the budgets")
    parser.add_argument("--ranks", type=int, help="compare so many processes with one")
    parser.add_argument("--aware", action="store_true", help="compare scores that know of the refit with plain ones")
    parser.add_argument("--repeats", type=int, default=3, help="for --ranks and --aware")
    parser.add_argument("--into", help=argparse.SUPPRESS)
    parser.add_argument("--within", help=argparse.SUPPRESS)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--plot", type=Path)
    options = parser.parse_args()
    options.images = options.images or (1000 if options.model == "tiny" else 16)
    if options.into:
        score_into(options)
        return
    if options.within:
        print(json.dumps(within(options, options.within)))
        return
    case = {"model": options.model, "layers": options.layers, "images": options.images, "captions": options.captions}
    if options.ranks:
        row = {"what": "ranks", **case, **shared_out(options)}
        print(json.dumps(row, indent=1))
    elif options.aware:
        row = {"what": "aware", **case, **aware(options)}
        print(json.dumps(row, indent=1))
    elif options.effect:
        row = {"what": "autocast", **case, **effect(options)}
        print(json.dumps(row, indent=1))
    elif options.budgets:
        row = {"what": "budgets", **case, "budgets": budgets(options)}
    else:
        row = {"what": "engine", **case, **compare(options)}
        print(json.dumps(row, indent=1))
    if options.json:
        options.json.write_text(json.dumps(row, indent=1) + "\n")
    if options.plot:
        files = sorted(options.json.parent.glob("scoring*.json")) if options.json else []
        rows = [json.loads(file.read_text()) for file in files] or [row]
        plot([other for other in rows if other["what"] == "engine"], options.plot)


if __name__ == "__main__":
    main()
