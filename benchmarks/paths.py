"""Which path of removals keeps the most recall, without any retraining? Tiny CLIP, emoji scenes, several calibration draws.

    python benchmarks/paths.py --json FILE [--plot FILE] [--seeds 0 1 2] [--pairs 1000] [--parts joint merged heads full]

Heads alone: greedy against single removals, lazy against full greedy. Heads and neurons of both towers together, cut at shares
of the blocks' parameters: the joint path against Fisher and L1 per parameter, and against paths found apart and then merged.
Orders come from calibration pairs, recall from test pairs. Prints mean R@1 of both directions.
"""

import argparse
import functools
import json
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import torch
import torch_pruning as tp
from torch import Tensor
from tqdm import tqdm

import torch_pruning_mope as mope
from torch_pruning_mope.cost import freed_parameters
from torch_pruning_mope.importance._unit import unit_sublayers
from torch_pruning_mope.scoring import (
    Ablation,
    Meter,
    PrefixEngine,
    enumerate_units,
    greedy_path,
    nested_ablations,
    neuron_orders,
    single_ablation,
)
from torch_pruning_mope.scoring._families import isotonic_pools, pooled
from torch_pruning_mope.towers import Unit

HEAD_RATIOS = (0.3, 0.5)
BUDGETS = (0.3, 0.4, 0.5, 0.6)
PARTS = ("joint", "merged", "heads", "full")
BOTH = ("image", "text")
Order = list[Unit]
Importances = dict[tuple[str, str, int], Tensor]
"""One number per head or neuron, by kind, tower and layer."""


def isotonic(losses: Sequence[float]) -> list[float]:
    """Isotonic increments of a curve of losses that begins at none."""
    values = torch.tensor(losses, dtype=torch.double)
    increments = values.diff(prepend=values.new_zeros(1))
    return pooled(increments, isotonic_pools(increments)).tolist()


class Bench:
    """One model, which is masked and never changed, its test pairs, and the rows found so far."""

    def __init__(self, test: mope.Pairs, encoder: mope.DualEncoder | None = None) -> None:
        self.encoder = mope.DualEncoder(mope.load_tiny_clip()) if encoder is None else encoder
        self.test = test
        self.blocks = {Unit("block", layer.tower, layer.index, 0) for layer in self.encoder.layers}  # type: ignore[arg-type]
        self.size = sum(freed_parameters(self.encoder, block) for block in self.blocks)
        self.rows: list[dict[str, Any]] = []

    def recall(self, units: Iterable[Unit]) -> float:
        """Mean R@1 of both directions without some units, in percent."""
        channels: dict[Any, tuple[int, ...]] = defaultdict(tuple)
        for unit in units:
            channels[unit.tower, unit.layer, unit.kind] += unit.channels
        gone = [Ablation(*key, own) for key, own in channels.items()]
        images, texts = (
            PrefixEngine(self.encoder).embeddings(tower, inputs, [a for a in gone if a.tower == tower])  # type: ignore[arg-type]
            for tower, inputs in zip(BOTH, (self.test.images, self.test.tokens), strict=True)
        )
        return 100 * mope.metrics.Recall((1,))(images, texts, self.test.image_index)

    def prefix(self, order: Order, budget: float) -> Order:
        """The first units of an order that together free at least this share of the blocks' parameters."""
        freed, chosen = 0, []
        for unit in order:
            if freed >= budget * self.size:
                break
            chosen.append(unit)
            freed += freed_parameters(self.encoder, unit)
        return chosen

    def add(self, seed: int, criterion: str, part: str, at: float, units: Order, **rest: Any) -> None:
        """One row, in place of what an earlier run found."""
        row = {"seed": seed, "criterion": criterion, "part": part, "at": at}
        self.rows = [known for known in self.rows if any(known[key] != row[key] for key in row)]
        self.rows.append({**row, "r1": self.recall(units), "units": len(units), **rest})

    def heads(self, seed: int, pairs: mope.Pairs, parts: Sequence[str]) -> None:
        """Heads alone: single removals, lazy greedy, full greedy."""
        units = enumerate_units(self.encoder, ("head",), {}, 1, BOTH)
        owner = {single_ablation(unit): unit for unit in units}
        orders: dict[str, Order] = {}
        cost: dict[str, dict[str, float]] = {}
        for metric in (mope.metrics.Recall(), self.loss()) if "heads" in parts else ():
            meter, clock = self.meter(pairs, metric), time.perf_counter()
            single = dict(meter.losses(list(owner)))
            name = f"single, {metric.name}"
            orders[name] = sorted(units, key=lambda unit: single[single_ablation(unit)].value)
            cost[name] = {"evaluations": meter.evaluations, "seconds": time.perf_counter() - clock}
        for name, lazy in (("lazy greedy", True), ("full greedy", False)):
            if ("heads" if lazy else "full") not in parts:
                continue
            meter, clock = self.meter(pairs, self.loss()), time.perf_counter()
            orders[name] = [unit for unit, _ in greedy_path(meter, dict.fromkeys(units, 1), lazy=lazy)]
            cost[name] = {"evaluations": meter.evaluations, "seconds": time.perf_counter() - clock}
        for name, order in orders.items():
            for ratio in HEAD_RATIOS:
                count = -int(-ratio * len(units) // 1)
                gone = [str(unit) for unit in order[:count]]
                self.add(seed, name, "heads", ratio, order[:count], gone=gone, **cost[name])

    def joint(self, seed: int, pairs: mope.Pairs, groups: int, parts: Sequence[str]) -> None:
        """Heads and neurons of both towers per parameter."""
        clock = time.perf_counter()
        importances: dict[str, Importances] = {"Fisher, gates": self.gates(pairs)}
        cost = {"Fisher, gates": {"evaluations": 0, "seconds": time.perf_counter() - clock}}
        magnitude = tp.importance.GroupMagnitudeImportance(p=1, group_reduction="sum", normalizer=None)
        for name, criterion in (("Fisher, weights", hessian()), ("L1", magnitude)):
            clock = time.perf_counter()
            importances[name] = self.stock(pairs, criterion)
            cost[name] = {"evaluations": 0, "seconds": time.perf_counter() - clock}
        orders = {name: self.ranked(found) for name, found in importances.items()}
        neurons = neuron_orders(self.encoder, pairs, self.stored(importances["Fisher, weights"]))
        units = enumerate_units(self.encoder, ("head", "neurons"), neurons, groups, BOTH)
        for name, find in (("merged", self.merged), ("joint", self.joint_order)):
            if name not in parts:
                continue
            meter, clock = self.meter(pairs, self.loss()), time.perf_counter()
            orders[name] = find(meter, units)
            cost[name] = {"evaluations": meter.evaluations, "seconds": time.perf_counter() - clock}
        for name, order in orders.items():
            for budget in BUDGETS:
                self.add(seed, name, "joint", budget, self.prefix(order, budget), **cost[name])

    def loss(self) -> mope.metrics.ContrastiveLoss:
        """The smooth metric, at the model's own temperature."""
        return mope.metrics.ContrastiveLoss(float(torch.as_tensor(self.encoder.logit_scale).detach()))

    def meter(self, pairs: mope.Pairs, metric: mope.metrics.Metric) -> Meter:
        """A fresh meter, so that its evaluations are one path's."""
        return Meter(PrefixEngine(self.encoder, keep=True), pairs, metric)

    def joint_order(self, meter: Meter, units: Order) -> Order:
        """The joint path."""
        sizes = {unit: freed_parameters(self.encoder, unit) for unit in units}
        return [unit for unit, _ in greedy_path(meter, sizes, budget=int(max(BUDGETS) * self.size) + 1)]

    def merged(self, meter: Meter, units: Order) -> Order:
        """Each tower's greedy heads and each MLP's nested groups, measured apart; merged by isotonic loss per parameter."""
        families: dict[Any, Order] = defaultdict(list)
        for unit in units:
            families[unit.tower, unit.layer if unit.kind == "neurons" else None].append(unit)
        ranked: list[tuple[float, Unit]] = []
        for (_, layer), members in families.items():
            if layer is None:
                path = greedy_path(meter, dict.fromkeys(members, 1))
                order, losses = [unit for unit, _ in path], [loss.value for _, loss in path]
            else:
                nested = nested_ablations(members)
                found = dict(meter.losses(nested))
                order, losses = members, [found[a].value for a in nested]
            scores = isotonic(losses)
            ranked += [(s / freed_parameters(self.encoder, u), u) for s, u in zip(scores, order, strict=True)]
        return [unit for _, unit in sorted(ranked, key=lambda entry: entry[0])]

    def ranked(self, importances: Importances) -> Order:
        """Single heads and neurons, by importance per parameter."""
        entries = []
        for (kind, tower, layer), values in importances.items():
            size = self.encoder.towers[tower].blocks[layer].attention.unit_size if kind == "head" else 1  # type: ignore[index]
            for index, value in enumerate(values.tolist()):
                unit = Unit(kind, tower, layer, index, tuple(range(index * size, (index + 1) * size)))  # type: ignore[arg-type]
                entries.append((value / freed_parameters(self.encoder, unit), unit))
        return [unit for _, unit in sorted(entries, key=lambda entry: entry[0])]

    def stock(self, pairs: mope.Pairs, criterion: Any) -> Importances:
        """A Torch-Pruning criterion, summed over each unit's whole group."""
        hessian = isinstance(criterion, tp.importance.GroupHessianImportance)
        if hessian or isinstance(criterion, tp.importance.GroupTaylorImportance):
            self.encoder.accumulate_gradients(pairs, squared=hessian)
        graph, found = self.encoder.dependency_graph(), {}
        for key, sublayer, output in unit_sublayers(self.encoder):
            group = graph.get_pruning_group(output, tp.prune_linear_in_channels, list(range(output.in_features)))
            found[key] = criterion(group).detach().view(-1, sublayer.unit_size).sum(1)
        self.encoder.model.zero_grad()
        return found

    def stored(self, importances: Importances) -> Callable[[Any], Tensor]:
        """Neuron importances that were computed once, as a criterion to order by."""
        firsts = {layer.block.feed_forward.first[0]: (layer.tower, layer.index) for layer in self.encoder.layers}
        return lambda group: importances["neurons", *firsts[group[0].dep.target.module]]

    def gates(self, pairs: mope.Pairs) -> Importances:
        """Mean over pairs of the squared gradient of the contrastive loss by a gate on each head or neuron.

        A pair's part is what reaches the gate through the pair's own image and caption, as in ``accumulate_gradients``.
        """
        encoder, found = self.encoder, defaultdict[Any, Any](float)
        for batch in pairs.batches(64):
            inputs = dict(zip(BOTH, batch, strict=True))
            hidden: dict[Any, Tensor] = {}
            handles = [
                output.register_forward_pre_hook(functools.partial(_keep_input, hidden, key))
                for key, _, output in unit_sublayers(encoder)
            ]
            embeddings = {tower: encoder.embed(tower, part) for tower, part in inputs.items()}  # type: ignore[arg-type]
            for handle in handles:
                handle.remove()
            normed = [torch.nn.functional.normalize(embedding, dim=-1) for embedding in embeddings.values()]
            logits = encoder.logit_scale * normed[0] @ normed[1].T
            target = torch.arange(len(logits))
            loss = torch.nn.functional.cross_entropy
            total = (loss(logits, target, reduction="sum") + loss(logits.T, target, reduction="sum")) / 2
            # Sequences meet in the logits alone, so a sequence's part of the gradient is its own row of the gradient.
            gradients = torch.autograd.grad(total, list(hidden.values()))
            for (key, values), gradient in zip(hidden.items(), gradients, strict=True):
                size = encoder.towers[key[1]].blocks[key[2]].attention.unit_size if key[0] == "head" else 1
                gate = (values * gradient).detach().sum(1).unflatten(-1, (-1, size)).sum(-1)
                found[key] = found[key] + gate.square().sum(0) / pairs.num_images
        return dict(found)


def _keep_input(store: dict[Any, Tensor], key: object, _module: object, given: tuple[Tensor]) -> None:
    store[key] = given[0]


def hessian() -> Any:
    """Torch-Pruning's Hessian criterion in the form that adds up over a unit's weights and biases."""
    return tp.importance.GroupHessianImportance(group_reduction="sum", normalizer=None, bias=True)


def cells(rows: Sequence[dict[str, Any]], part: str) -> dict[str, dict[float, list[dict[str, Any]]]]:
    """Rows over seeds, by criterion and ratio or budget."""
    found: dict[str, dict[float, list[dict[str, Any]]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        if row["part"] == part:
            found[row["criterion"]][row["at"]].append(row)
    return found


def print_tables(rows: Sequence[dict[str, Any]], dense: float) -> None:
    """Mean and spread over seeds per cell, what it cost, and what targets the paths were to reach."""
    for part, title in (("heads", "heads removed"), ("joint", "block parameters removed")):
        print(f"\nmean R@1 by share of {title} (dense {dense:.1f}), mean ± standard deviation over seeds")
        for name, line in cells(rows, part).items():
            found = [row for column in line.values() for row in column]
            text = "  ".join(
                f"{at:.0%}: {statistics.mean(v):5.1f} ± {statistics.pstdev(v):4.1f}"
                for at, column in line.items()
                if (v := [row["r1"] for row in column])
            )
            effort = [statistics.mean(row[what] for row in found) for what in ("evaluations", "seconds")]
            print(f"  {name:26} {text}  {effort[0]:5.0f} evaluations {effort[1]:5.0f} s")
    gone = {(row["seed"], row["at"], row["criterion"]): set(row["gone"]) for row in rows if row["part"] == "heads"}
    for (seed, at, name), chosen in gone.items():
        other = gone.get((seed, at, "full greedy"))
        if name == "lazy greedy" and other:
            print(
                f"  seed {seed}: lazy shares {len(chosen & other)} of the {len(other)} heads of full greedy at {at:.0%}"
            )


def plot(rows: Sequence[dict[str, Any]], dense: float, path: Path) -> None:
    """Recall against the share of parameters removed."""
    mpl.use("Agg")
    import matplotlib.pyplot as plt

    colours = {"L1": "#E69F00", "Fisher, gates": "#56B4E9", "Fisher, weights": "#009E73", "merged": "#CC79A7"}
    figure, axis = plt.subplots(figsize=(5.5, 3.6), layout="constrained")
    for (name, line), marker in zip(cells(rows, "joint").items(), "sov^D", strict=False):
        values = [[row["r1"] for row in column] for column in line.values()]
        axis.errorbar(
            [0, *(100 * budget for budget in line)],
            [dense, *map(statistics.mean, values)],
            [0, *map(statistics.pstdev, values)],
            label={"merged": "MoPE, merged", "joint": "MoPE, joint"}.get(name, name),
            color=colours.get(name, "#000000"), marker=marker, capsize=3, lw=2 if name == "joint" else 1.2,
        )  # fmt: skip
    axis.set(
        xlabel="block parameters removed (%)", ylabel="mean R@1 on test pairs (%)",
        title="Tiny CLIP, pruned without retraining",
    )  # fmt: skip
    axis.grid(alpha=0.3)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=150)


def main() -> None:
    """Runs, prints, writes after every seed; rows of an earlier run that are in the file stay."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--pairs", type=int, default=1000)
    parser.add_argument("--test", type=int, default=2000)
    parser.add_argument("--groups", type=int, default=16)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="full: full greedy, which is slow")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--plot", type=Path)
    args = parser.parse_args()
    bench = Bench(mope.emoji_pairs("test", args.test, seed=0))
    dense = bench.recall([])
    if args.json and args.json.exists():
        bench.rows = json.loads(args.json.read_text())["rows"]
    for seed in tqdm(args.seeds, desc="calibration draws"):
        pairs = mope.emoji_pairs("calibration", args.pairs, seed=seed)
        if {"joint", "merged"} & {*args.parts}:
            bench.joint(seed, pairs, args.groups, args.parts)
        if {"heads", "full"} & {*args.parts}:
            bench.heads(seed, pairs, args.parts)
        if args.json:
            settings = {key: value for key, value in vars(args).items() if key not in {"json", "plot"}}
            args.json.write_text(json.dumps({"dense": dense, "args": settings, "rows": bench.rows}, indent=1))
        print_tables(bench.rows, dense)
    if args.plot:
        plot(bench.rows, dense, args.plot)


if __name__ == "__main__":
    main()
