"""Recall without training: what criteria leave, refitted in closed form in several ways, by share of the blocks kept.

    python benchmarks/reconstruction.py --json benchmarks/figures/reconstruction.json --seeds 0 1 2
    python benchmarks/reconstruction.py --json FILE --siglip tiny_siglip.safetensors --shares 0.5 0.3 0.2
    python benchmarks/reconstruction.py --json FILE --model ViT-B-32@laion2b_s34b_b79k --data captions_val2017.json --root PATH

Without ``--model``, the tiny CLIP. Every criterion gets the same refits on the same unlabelled pairs, none of which are test
pairs. ``MoPE, aware`` removes what ``mope.compress`` removes: scores that know of the refit, in stages. ``MoPE, blind`` is the
joint path of the plain metric. Rows that the file has are not made again. ``--cost`` times ``mope.compress`` and
``mope.reconstruct`` in units of one dense pass (forward, both towers) over their own pairs.

Refits: ``none``; ``bias only`` (FLAP); ``own output`` (GRAIL, CORP); ``stream`` (``mope.reconstruct``); ``stream, 1e-4`` (the
same with a fixed ridge); ``stream and inputs`` (``mope.reconstruct(inputs=True)``).
"""

import argparse
import copy
import functools
import resource
import runpy
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import _baselines
import _study
import matplotlib as mpl
import psutil
import torch
from safetensors.torch import load_file

import torch_pruning_mope as mope
from torch_pruning_mope.cost import footprints
from torch_pruning_mope.planning import Plan, plan_range

SETTINGS = {"steps": 100, "learning_rate": 1e-3, "batch_size": 128, "train": 8000}
FLOOR_BELOW = 0.3
"""Shares at which rivals keep a head in each layer, without which they empty the attention of whole layers."""
FLOOR = ", a head in each layer"
CRITERIA = ("MoPE, aware", f"MoPE, aware{FLOOR}", "MoPE, blind", "Hessian", "Taylor", "L1", "random")
REFITS = ("none", "bias only", "own output", "stream", "stream, 1e-4", "stream and inputs")
COLOURS = dict(
    zip(CRITERIA, ("#000000", "#555555", "#D55E00", "#009E73", "#56B4E9", "#E69F00", "#999999"), strict=True)
)
STAGES = (0.5, 0.3, 0.2, 0.14, 0.1)
"""Shares of the blocks at which aware scores are measured anew."""


class Reconstruction:
    """Rows of all cells.

    Args:
        study: The model and its rows.
        pairs: By seed, pairs to score on, and those to refit on.
        work: Folder of what goes on after an interruption.
    """

    def __init__(
        self,
        study: _study.Study,
        pairs: Callable[[int], tuple[mope.Pairs, mope.Pairs]],
        work: Path,
        deepest: float,
        features: float = 5000.0,
    ) -> None:
        self.study, self.work, self.deepest, self.features = study, work, deepest, features
        self.pairs = functools.lru_cache(1)(pairs)
        study.calibration = lambda seed: self.pairs(seed)[0]  # type: ignore[method-assign]
        self.sums = functools.lru_cache(1)(lambda seed: _baselines.dense_sums(study.dense, self.pairs(seed)[1]))
        self.aware = functools.lru_cache(2)(self._aware)

    def _aware(self, seed: int, min_heads: int) -> tuple[dict[float, list[Plan]], float]:
        """By share, the plans of ``mope.compress``, stage by stage; and the seconds of CPU of all stages."""
        total = sum(footprint.parameters for footprint in footprints(self.study.dense).values())
        groups = self.study.settings["groups"]
        least = plan_range(self.study.dense, kinds=("head", "neurons"), groups=groups, min_heads=min_heads)
        smallest = sum(footprint.parameters for footprint in least.smallest.values())
        stages = [share for share in STAGES if share >= self.deepest]
        limits = [int(total - (1 - share) * self.study.size) for share in stages]
        shares = [(limit - smallest) / (total - smallest) for limit in limits[:-1]]
        path, began = self.work / f"aware-{seed}-{min_heads}", time.process_time()
        mope.compress(
            self.study.dense, self.pairs(seed)[0], parameters=limits[-1], stages=shares, groups=groups,
            min_heads=min_heads, reconstruct_pairs=self.pairs(seed)[1], inputs=False, path=path, progress=False,
        )  # fmt: skip
        plans = [Plan.load(file) for file in sorted(path.glob("stage-*/plan.json"))]
        assert len(plans) == len(stages)  # noqa: S101
        return {share: plans[: i + 1] for i, share in enumerate(stages)}, time.process_time() - began

    def selected(self, seed: int, share: float, name: str) -> mope.DualEncoder:
        """A copy of the dense model without what a criterion removes."""
        if name.startswith("MoPE, aware"):
            return self.study.built(plan.units for plan in self.aware(seed, int(name.endswith(FLOOR)))[0][share])
        if name == "MoPE, blind":
            return self.study.built(self.study.plan(seed, share))
        order, _ = self.study.order(seed, name)
        units = self.study.cut(order, int(share * self.study.size), min_heads=int(share < FLOOR_BELOW))
        return self.study.built([units])

    def refitted(self, small: mope.DualEncoder, seed: int, refit: str) -> mope.DualEncoder:
        """A refitted copy."""
        small = mope.DualEncoder(copy.deepcopy(small.model)) if refit == "none" else copy.deepcopy(small)
        if refit in {"bias only", "own output"}:
            _baselines.refit(small, self.study.dense, self.sums(seed), bias_only=refit == "bias only")
        elif refit != "none":
            ridge = 1e-4 if refit == "stream, 1e-4" else None
            mope.reconstruct(
                small, self.study.dense, self.pairs(seed)[1], ridge=ridge, inputs=refit == "stream and inputs", progress=False
            )  # fmt: skip
        return small

    def cell(self, seed: int, share: float, name: str, refits: list[str]) -> None:
        """Makes the rows of a cell that are missing."""
        keys = [{"seed": seed, "share": share, "criterion": name, "refit": refit} for refit in refits]
        keys = [key for key in keys if not self.study.has("rows", **key)]
        if not keys:
            return
        small = self.selected(seed, share, name)
        kept = _study.blocks_size(small) / self.study.size
        for key in keys:
            began = time.process_time()
            model = self.refitted(small, seed, key["refit"])
            seconds = time.process_time() - began
            self.study.add("rows", key | {"r1": self.recall(model), "kept": kept, "seconds": seconds})

    def cost(self, seed: int, share: float) -> None:
        """A row of the time and memory of ``mope.compress`` to a share, and of one reconstruction."""
        if self.study.has("cost", share=share):
            return
        scored, more = self.pairs(seed)
        dense, process = self.study.dense, psutil.Process()
        limit = int(self.study.allowed(share))
        once = {name: _pass_seconds(dense, pairs) for name, pairs in (("scored", scored), ("refitted", more))}
        began, before = time.perf_counter(), process.memory_info().rss
        small = mope.compress(
            dense,
            scored,
            parameters=limit,
            groups=self.study.settings["groups"],
            reconstruct_pairs=more,
            progress=False,
        )
        whole, peak = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before
        row = {
            "share": share,
            "compress_seconds": whole,
            "compress_passes": whole / once["scored"],
            "peak_bytes": peak,
        }
        for name, inputs in (("reconstruct", False), ("reconstruct_inputs", True)):
            began = time.perf_counter()
            mope.reconstruct(small, dense, more, inputs=inputs, progress=False)
            row[f"{name}_seconds"] = time.perf_counter() - began
            row[f"{name}_passes"] = row[f"{name}_seconds"] / once["refitted"]
        self.study.add("cost", row)

    def recall(self, encoder: mope.DualEncoder) -> float:
        """Mean R@1 of both directions on the test pairs, in percent."""
        return _study.mean_r1(_study.recall(encoder, self.study.test))

    def train(self, seed: int, share: float, steps: int, rate: float, *, validation: bool = False) -> None:
        """A row after distillation of the aware student, refitted with its inputs; of the dense model at a share of 1."""
        part = "rates" if validation else "trained"
        key = {"seed": seed, "share": share, "steps": steps, "rate": rate, "features": self.features}
        if self.study.has(part, **key):
            return
        if share == 1:
            student = self.study.built(())
        else:
            student = self.refitted(self.selected(seed, share, "MoPE, aware"), seed, "stream and inputs")
        loss = mope.DistillationLoss(features=self.features)
        cost = self.study.distil(student, seed, steps=steps, learning_rate=rate, loss=loss)
        pairs = mope.emoji_pairs("calibration", 2000, seed=1000) if validation else self.study.test
        self.study.add(part, key | {"r1": _study.mean_r1(_study.recall(student, pairs))} | cost)


def _pass_seconds(encoder: mope.DualEncoder, pairs: mope.Pairs) -> float:
    """Median seconds of a forward pass of both towers over all pairs."""
    times = []
    for _ in range(3):
        began = time.perf_counter()
        with torch.inference_mode():
            for tower, inputs in (("image", pairs.images), ("text", pairs.tokens)):
                for batch in inputs.split(64):
                    encoder.embed(tower, batch)  # type: ignore[arg-type]
        times.append(time.perf_counter() - began)
    return statistics.median(times)


def report(found: Mapping[str, Any]) -> str:
    """Tables of the rows of a file: recall by refit and criterion, leads over the best rival, and after training."""
    rows = found.get("rows", [])
    shares = sorted({row["share"] for row in rows}, reverse=True)
    head = [" | ".join(f"{share:.0%} kept" for share in shares) + " |", "|---" * (len(shares) + 1) + "|"]
    lines = [f"Mean R@1 of the dense model: {found['dense'][0]['r1']:.1f}."]
    for refit in [refit for refit in REFITS if any(row["refit"] == refit for row in rows)]:
        lines += ["", f"| refit: {refit} | {head[0]}", head[1]]
        for name in CRITERIA:
            values = [list(_values(rows, refit, name, share).values()) for share in shares]
            if any(values):
                lines.append(f"| {name} | " + " | ".join(map(_study.spread, values)) + " |")
    leads = [
        (f"{name}, {refit}", [_leads(rows, refit, name, share) for share in shares])
        for refit in ("stream", "stream and inputs")
        for name in CRITERIA[:2]
    ]
    if any(any(lead) for _, lead in leads):
        lines += ["", f"| lead over the best rival | {head[0]}", head[1]]
        lines += [f"| {name} | " + " | ".join(map(_study.spread, lead)) + " |" for name, lead in leads if any(lead)]
    for part, title in (("rates", "validation pairs"), ("trained", "test pairs")):
        trained = found.get(part, [])
        if trained:
            lines += [
                "",
                f"| share kept | steps | learning rate | β | mean R@1, {title} | of the dense model's |",
                "|---" * 6 + "|",
            ]
        names = ("share", "steps", "rate", "features")
        for key in dict.fromkeys(tuple(row[name] for name in names) for row in trained):
            mine = {row["seed"]: row["r1"] for row in trained if tuple(row[name] for name in names) == key}
            like = [
                {row["seed"]: row["r1"] for row in trained if tuple(row[name] for name in names) == (1.0, *rest)}
                for rest in (key[1:], (*key[1:3], 1000.0))
            ]
            equal = like[1] | like[0]
            of = [value / equal[seed] for seed, value in mine.items() if seed in equal]
            shown = f"{key[0]:.0%}", *key[1:3], f"{key[3]:g}"
            cells = (*shown, _study.spread(list(mine.values())), _study.spread(of, "{:.3f}".format))
            lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


def _values(rows: list[Any], refit: str, name: str, share: float) -> dict[int, float]:
    return {
        row["seed"]: row["r1"] for row in rows if (row["refit"], row["criterion"], row["share"]) == (refit, name, share)
    }


def _leads(rows: list[Any], refit: str, name: str, share: float) -> list[float]:
    """Over the stock criterion that is best on average."""
    mine = _values(rows, refit, name, share)
    rivals = [_values(rows, refit, rival, share) for rival in CRITERIA[3:]]
    rivals = [rival for rival in rivals if mine and rival.keys() >= mine.keys()]
    if not rivals:
        return []
    best = max(rivals, key=lambda rival: statistics.mean(rival[seed] for seed in mine))
    return [mine[seed] - best[seed] for seed in mine]


def plot(study: _study.Study, path: Path) -> None:
    """Recall against the share of the blocks that is kept: removed, and reconstructed."""
    mpl.use("Agg")
    import matplotlib.pyplot as plt

    rows, dense = study.rows("rows"), study.rows("dense")[0]["r1"]
    shares = sorted({row["share"] for row in rows}, reverse=True)
    figure, axes = plt.subplots(1, 2, figsize=(9.5, 4.1), sharey=True, layout="constrained")
    for axis, (refit, title) in zip(
        axes, (("none", "removed"), ("stream", "removed, then reconstructed")), strict=True
    ):
        for name, marker in zip(CRITERIA, "oXs^Dvp", strict=True):
            found = {share: list(_values(rows, refit, name, share).values()) for share in shares}
            found = {100 * share: values for share, values in found.items() if values}
            spreads = [statistics.stdev(values) if len(values) > 1 else 0.0 for values in found.values()]
            axis.errorbar(
                list(found), [statistics.mean(values) for values in found.values()], spreads, label=name, color=COLOURS[name],
                marker=marker, capsize=3, lw=2 if "aware" in name else 1.2, ls="--" if name.endswith(FLOOR) else "-",
            )  # fmt: skip
        axis.axhline(dense, color="#777777", lw=1, ls=":", label="dense model")
        axis.set(xlabel="block parameters kept (%)", title=title, ylim=(0, 100))
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("mean R@1 (%)")
    axes[0].invert_xaxis()
    axes[1].invert_xaxis()
    figure.legend(*axes[1].get_legend_handles_labels(), ncols=4, frameon=False, fontsize=8, loc="outside lower center")
    figure.savefig(path, dpi=150)
    plt.close(figure)


def users_pairs(
    dataset: Any, options: argparse.Namespace
) -> tuple[mope.Pairs, Callable[[int], tuple[mope.Pairs, mope.Pairs]]]:
    """Test pairs, and by seed those to score and to refit on, of other images."""
    first = mope.split_pairs(dataset, calibration=0, test=options.test, seed=0)

    def of_seed(seed: int) -> tuple[mope.Pairs, mope.Pairs]:
        counts = options.pairs, options.reconstruct_pairs
        parts = (mope.split_pairs(first.train, calibration=count, test=0, seed=seed) for count in counts)
        scored, refitted = (mope.gather_pairs(part.calibration) for part in parts)
        return scored, refitted

    return mope.gather_pairs(first.test), of_seed


def tiny_siglip(weights: Path) -> mope.DualEncoder:
    """The second model, whose weights do not ship."""
    script = runpy.run_path(str(Path(__file__).parent.parent / "examples" / "train_tiny_clip.py"))
    model = script["build_tiny_siglip"]()
    model.load_state_dict({name: tensor.float() for name, tensor in load_file(weights).items()})
    return mope.DualEncoder(model.eval())


def main() -> None:
    """Makes the rows that are missing and prints them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="file of the rows; those that are there are not made again")
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--model", help="a name that mope.load_model takes; the tiny CLIP by default")
    parser.add_argument("--data", help="with --model, what mope.open_pairs takes")
    parser.add_argument("--root", help="with --data, folder of the images")
    parser.add_argument("--siglip", type=Path, help="weights of examples/train_tiny_clip.py --architecture siglip")
    parser.add_argument("--shares", type=float, nargs="+", choices=STAGES, default=[0.5, 0.3, 0.2, 0.1])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--criteria", nargs="+", choices=CRITERIA, default=CRITERIA)
    parser.add_argument("--refits", nargs="+", choices=REFITS, default=REFITS)
    parser.add_argument("--pairs", type=int, default=1000, help="pairs that are scored on")
    parser.add_argument("--reconstruct-pairs", type=int, default=4000)
    parser.add_argument("--test", type=int, default=2000, help="pairs of the test gallery")
    parser.add_argument("--groups", type=int, default=8, help="neuron groups per MLP")
    parser.add_argument("--steps", type=int, nargs="*", default=[], help="distil the aware students for as many steps")
    parser.add_argument("--rates", type=float, nargs="+", default=[1e-3], help="learning rates of the distillation")
    parser.add_argument(
        "--validate", action="store_true", help="measure the distilled on validation pairs, to choose a rate"
    )
    parser.add_argument("--features", type=float, default=5000.0, help="weight of L_feat in the distillation")
    parser.add_argument("--cost", action="store_true", help="time compress and reconstruct, on the first seed")
    parser.add_argument("--train", type=int, default=SETTINGS["train"], help="training pairs of the distillation")
    parser.add_argument("--work", type=Path, help="folder of what goes on after an interruption")
    options = parser.parse_args()
    torch.set_num_threads(1)
    settings = SETTINGS | {
        name: getattr(options, name) for name in ("pairs", "test", "groups", "train", "reconstruct_pairs")
    }
    with tempfile.TemporaryDirectory() as folder:
        work = options.work or Path(folder)
        work.mkdir(parents=True, exist_ok=True)
        if options.model is None:
            dense = None if options.siglip is None else tiny_siglip(options.siglip)
            settings |= {} if dense is None else {"model": "tiny SigLIP"}
            study = _study.Study(settings, options.json, work, dense=dense)

            def pairs(seed: int) -> tuple[mope.Pairs, mope.Pairs]:
                count = options.reconstruct_pairs
                return mope.emoji_pairs("calibration", options.pairs, seed=seed), mope.emoji_pairs(
                    "calibration", count, seed=seed
                )
        else:
            loaded = mope.load_model(options.model)
            dense = mope.DualEncoder(loaded.model)
            dataset = mope.open_pairs(options.data, loaded.preprocess, loaded.tokenizer, root=options.root)
            test, pairs = users_pairs(dataset, options)
            study = _study.Study(settings | {"model": options.model}, options.json, work, dense=dense, test=test)
        if not study.has("dense"):
            study.add("dense", {"r1": _study.mean_r1(_study.recall(study.dense, study.test))})
        cells = Reconstruction(study, pairs, work, min(options.shares), options.features)
        for share in options.shares if options.cost else ():
            cells.cost(options.seeds[0], share)
        for seed in options.seeds:
            for name in options.criteria:
                for share in sorted(options.shares, reverse=True):
                    cells.cell(seed, share, name, options.refits)
        for steps in options.steps:
            for seed in options.seeds:
                for share in ([] if options.validate else [1.0]) + options.shares:
                    for rate in options.rates:
                        cells.train(seed, share, steps, rate, validation=options.validate)
    print(report(study.found))
    if options.plot:
        plot(study, options.plot)


if __name__ == "__main__":
    main()
