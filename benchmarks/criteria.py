"""Which criterion keeps the most recall, without any retraining? Tiny CLIP, emoji scenes, several calibration draws.

    python benchmarks/criteria.py --json FILE --plot FILE [--seeds 3] [--pairs 1000] [--test 2000]

Every criterion removes the same number of units, ranked over all layers of both towers. Scores come from calibration pairs,
recall from test pairs. Neurons: each criterion alone ranks single neurons; as an *ordering* it only sorts the neurons of each
MLP, and MoPE (contrastive loss) of nested or single groups decides between layers. Prints mean R@1 of both directions.
"""

import argparse
import copy
import json
import statistics
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib as mpl
import torch
import torch_pruning as tp
from torch import Tensor
from tqdm import tqdm

import torch_pruning_mope as mope
from torch_pruning_mope.scoring import PrefixEngine

RATIOS = {"head": (0.3, 0.5), "ffn": (0.3, 0.5, 0.7)}


class Stored:
    """A Torch-Pruning criterion whose neuron scores were computed once, for use as an ordering."""

    def __init__(self, scores: dict[Any, Tensor]) -> None:
        self.scores = scores

    def __call__(self, group: Any) -> Tensor:
        """The stored scores of the group's first layer."""
        return self.scores[group[0].dep.target.module]


def recall(encoder: mope.DualEncoder, test: mope.Pairs) -> float:
    """Mean R@1 of both directions, in percent."""
    engine = PrefixEngine(encoder, batch_size=128)
    images = engine.embeddings("image", test.images)
    texts = engine.embeddings("text", test.tokens)
    return 100 * mope.metrics.Recall((1,))(images, texts, test.image_index)


class Bench:
    """The dense model, its test pairs, and the rows found so far."""

    def __init__(self, test: mope.Pairs, ratios: dict[str, tuple[float, ...]]) -> None:
        self.model = mope.DualEncoder(mope.load_tiny_clip()).model
        self.test, self.ratios = test, ratios
        self.rows: list[dict[str, Any]] = []

    def run(self, seed: int, criterion: str, kind: str, make: Callable[[Any], Any]) -> None:
        """Prunes a copy per ratio with the importance that ``make`` gives for it."""
        for ratio in self.ratios[kind]:
            encoder = mope.DualEncoder(copy.deepcopy(self.model))
            mope.prune(encoder, make(encoder), **{f"{kind}_ratio": ratio}, global_pruning=True)
            row = {"seed": seed, "criterion": criterion, "units": kind, "ratio": ratio}
            self.rows.append({**row, "r1": recall(encoder, self.test)})

    def stock(self, seed: int, pairs: mope.Pairs) -> dict[str, Callable[[Any], Any]]:
        """Torch-Pruning's criteria, strictly ordered; gradients on the calibration pairs."""
        dense = mope.DualEncoder(self.model)
        gradients: dict[bool | None, list[Tensor | None]] = {None: [None] * len(list(self.model.parameters()))}
        for squared in (False, True):
            dense.accumulate_gradients(pairs, squared=squared)
            gradients[squared] = [parameter.grad for parameter in self.model.parameters()]
        self.model.zero_grad()

        def make(kind: Any, squared: bool | None) -> Callable[[Any], Any]:
            def build(encoder: mope.DualEncoder) -> Any:
                torch.manual_seed(seed)
                for parameter, gradient in zip(encoder.model.parameters(), gradients[squared], strict=True):
                    parameter.grad = None if gradient is None else gradient.clone()
                return mope.WeightedImportance(encoder, [(kind, 1.0)])

            return build

        return {
            "random": make(tp.importance.RandomImportance(), None),
            "L1": make(tp.importance.GroupMagnitudeImportance(p=1), None),
            "L1, not normalised": make(tp.importance.GroupMagnitudeImportance(p=1, normalizer=None), None),
            "Taylor": make(tp.importance.GroupTaylorImportance(), False),
            "Taylor, not normalised": make(tp.importance.GroupTaylorImportance(normalizer=None), False),
            "Fisher": make(tp.importance.GroupHessianImportance(), True),
            "Fisher, not normalised": make(tp.importance.GroupHessianImportance(normalizer=None), True),
        }

    def ordering(self, build: Callable[[Any], Any]) -> Stored:
        """A stock criterion's neuron scores, as something to rewire by; keyed by the layers of the dense model."""
        encoder = mope.DualEncoder(copy.deepcopy(self.model))
        importance, graph = build(encoder), encoder.dependency_graph()
        criterion, scores = importance.criteria[0][0], {}
        mine = mope.DualEncoder(self.model).layers
        for layer, target in zip(encoder.layers, mine, strict=True):
            first, count = layer.block.feed_forward.first[0], layer.block.feed_forward.num_units
            group = graph.get_pruning_group(first, tp.prune_linear_out_channels, list(range(count)))
            scores[target.block.feed_forward.first[0]] = criterion(group)
        return Stored(scores)

    def seed(self, seed: int, pairs: mope.Pairs) -> None:
        """All criteria on one calibration draw."""
        stock = self.stock(seed, pairs)
        scored = mope.DualEncoder(self.model)
        for name, build in stock.items():
            self.run(seed, name, "head", build)
            self.run(seed, name, "ffn", build)
        for metric in ("recall_mean", "contrastive_loss"):
            table = mope.score(scored, pairs, metric=metric, kinds=("head",))
            self.run(seed, f"MoPE ({metric})", "head", _from(table))
        table = mope.score(scored, pairs, metric="contrastive_loss", kinds=("head",), interaction="greedy")
        self.run(seed, "MoPE greedy", "head", _from(table))
        for name in ("L1", "Taylor", "Fisher"):
            order = self.ordering(stock[name])
            for interaction in ("nested", "single") if name == "Fisher" else ("nested",):
                table = mope.score(
                    scored, pairs, metric="contrastive_loss", kinds=("neurons",), rewire=order, interaction=interaction
                )
                self.run(seed, f"MoPE {interaction}, {name} order", "ffn", _from(table))


def _from(table: mope.ScoreTable) -> Callable[[Any], Any]:
    return lambda encoder: mope.MoPEImportance(encoder, table=table)


def summary(rows: list[dict[str, Any]]) -> dict[tuple[str, float, str], list[float]]:
    """Recalls over seeds by units, ratio and criterion."""
    cells: dict[tuple[str, float, str], list[float]] = defaultdict(list)
    for row in rows:
        cells[row["units"], row["ratio"], row["criterion"]].append(row["r1"])
    return cells


def ratios_of(rows: list[dict[str, Any]], units: str) -> list[float]:
    """The shares removed, ascending."""
    return sorted({row["ratio"] for row in rows if row["units"] == units})


def print_table(rows: list[dict[str, Any]], dense: float) -> None:
    """Mean and spread per cell, a line per criterion."""
    cells = summary(rows)
    for units in RATIOS:
        ratios = ratios_of(rows, units)
        print(f"\nmean R@1 after removing {units}s (dense {dense:.1f}), mean ± standard deviation over seeds")
        names = dict.fromkeys(name for kind, _, name in cells if kind == units)
        for name in names:
            line = "  ".join(
                f"{ratio:.0%}: {statistics.mean(v):5.1f} ± {statistics.pstdev(v):4.1f}"
                for ratio in ratios
                if (v := cells[units, ratio, name])
            )
            print(f"  {name:26} {line}")


def plot(rows: list[dict[str, Any]], dense: float, path: Path) -> None:
    """Recall against the share removed, a panel for heads and one for neurons."""
    mpl.use("Agg")
    import matplotlib.pyplot as plt

    cells = summary(rows)
    stock = {"random": "#999999", "L1": "#E69F00", "Taylor": "#56B4E9", "Fisher": "#009E73"}
    mope_names = {
        "head": {"MoPE (contrastive_loss)": "#D55E00", "MoPE greedy": "#000000"},
        "ffn": {"MoPE nested, Fisher order": "#D55E00"},
    }
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.6), sharey=True, layout="constrained")
    for axis, (units, title) in zip(axes, (("head", "attention heads"), ("ffn", "FFN neurons")), strict=True):
        ratios = ratios_of(rows, units)

        def curve(name: str, units: str = units, ratios: list[float] = ratios) -> list[list[float]]:
            return [cells[units, ratio, name] for ratio in ratios]

        for (name, colour), marker in zip((stock | mope_names[units]).items(), "osv^D*", strict=False):
            # Torch-Pruning's criteria with or without its normaliser, whichever keeps more here.
            variants = [v for v in (name, f"{name}, not normalised") if all(curve(v))]
            points = max((curve(v) for v in variants), key=lambda c: sum(map(statistics.mean, c)))
            axis.errorbar(
                [0, *(100 * ratio for ratio in ratios)],
                [dense, *map(statistics.mean, points)],
                [0, *map(statistics.pstdev, points)],
                label=name.split(" (")[0], color=colour, marker=marker, capsize=3, lw=2 if "MoPE" in name else 1.2,
            )  # fmt: skip
        axis.set(xlabel=f"{title} removed (%)")
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
        axis.legend(frameon=False, fontsize=8)
    axes[0].set_ylabel("mean R@1 on test pairs (%)")
    figure.suptitle("Tiny CLIP, pruned without retraining")
    figure.savefig(path, dpi=150)


def main() -> None:
    """Runs, prints, writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--pairs", type=int, default=1000)
    parser.add_argument("--test", type=int, default=2000)
    parser.add_argument("--ratios", type=float, nargs="+", help="shares to remove, in place of the study's")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--plot", type=Path)
    args = parser.parse_args()
    ratios = dict.fromkeys(RATIOS, tuple(args.ratios)) if args.ratios else RATIOS
    bench = Bench(mope.emoji_pairs("test", args.test, seed=0), ratios)
    dense = recall(mope.DualEncoder(copy.deepcopy(bench.model)), bench.test)
    for seed in tqdm(range(args.seeds), desc="calibration draws"):
        bench.seed(seed, mope.emoji_pairs("calibration", args.pairs, seed=seed))
    print_table(bench.rows, dense)
    if args.json:
        args.json.write_text(
            json.dumps(
                {"dense": dense, "args": vars(args) | {"json": None, "plot": None}, "rows": bench.rows}, indent=1
            )
        )
    if args.plot:
        plot(bench.rows, dense, args.plot)


if __name__ == "__main__":
    main()
