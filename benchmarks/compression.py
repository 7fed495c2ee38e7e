"""How much recall is left once the tiny CLIP is small and was trained again? By criterion, size and seed.

    python benchmarks/compression.py --json FILE --plot FILE [--parts grid] [--seeds 0 1 2] [--budgets 0.5 ...] [--steps 120]

What is pruned is the tiny CLIP that ships with the package, and the teacher is the same model before; the part ``sibling``
compares it with a larger one that is trained here. Budgets are shares of the parameters of the blocks of both towers that are
kept. All students get as many steps of the same distillation; the reference is the dense model given the same. Scores come
from calibration pairs, training from training pairs, recall from test pairs: no two of these splits share a caption.

Criteria: MoPE's joint path (heads and neuron groups of both towers per parameter freed; what is left is scored again at a half
and at a fifth); L1, Taylor and Hessian of
single heads and neurons per parameter, each cut to the budget exactly, with sub-layers and blocks that are
empty removed whole; random; and ``scratch``, a model of MoPE's shape with fresh weights. Variants in which
each layer keeps a head are the better rivals where little is kept. Every row is written as it is found,
and a file that is there is gone on with.
"""

import argparse
import statistics
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import _compression_parts as parts
import matplotlib as mpl
import torch
from _study import Row, Study, mean_r1, shape, spread

CRITERIA = ("MoPE", "Hessian", "Taylor", "L1", "random", "scratch")
FLOOR = ", a head in each layer"
VARIANTS = tuple(f"{name}{FLOOR}" for name in ("MoPE", "Hessian", "Taylor", "L1"))
BUDGETS = (0.1, 0.2, 0.3, 0.5, 0.7)
TARGETS = {0.5: 0.98, 0.3: 0.95, 0.2: 0.90, 0.1: 0.75}
COLOURS = {
    "MoPE": "#000000", "Hessian": "#009E73", "Taylor": "#56B4E9", "L1": "#E69F00", "random": "#999999", "scratch": "#CC79A7",
}  # fmt: skip
PARTS = ("grid", "losses", "order", "allocation", "teacher", "sibling", "long")


def cells(seeds: Sequence[int], budgets: Sequence[float], criteria: Sequence[str]) -> Iterator[tuple[int, str, float]]:
    """The grid in the order in which it is worth most: deep cuts of the criteria first, seed by seed; then the rest."""
    late = {"scratch"}
    for wave in (0, 1):
        for seed in seeds:
            if wave == 0 and "dense" in criteria:
                yield seed, "dense", 1.0
            for budget in sorted(budgets):
                for criterion in (name for name in criteria if name != "dense"):
                    if wave == int(budget > 0.5 or criterion in late):
                        yield seed, criterion, budget


def grid(
    study: Study,
    seeds: Sequence[int],
    budgets: Sequence[float],
    criteria: Sequence[str],
    part: str = "grid",
    **changed: Any,
) -> None:
    """Prunes, trains and measures what is not there yet."""
    for seed, criterion, budget in cells(seeds, budgets, criteria):
        key = {"criterion": criterion, "budget": budget, "seed": seed}
        if study.has(part, **key):
            continue
        cost: Row = {}
        if criterion == "dense":
            student = study.built(())
        elif criterion == "scratch":
            student = study.scratch(seed, budget)
        elif criterion.removesuffix(FLOOR) == "MoPE":
            student, seconds = study.pruned(seed, budget, int(criterion.endswith(FLOOR)))
            cost = {"score_cpu_seconds": seconds, "shape": shape(student)}
        else:
            order, seconds = study.order(seed, criterion.removesuffix(FLOOR))
            units = study.cut(order, int(budget * study.size), min_heads=int(criterion.endswith(FLOOR)))
            student = study.built([units])
            cost = {"score_cpu_seconds": seconds, "shape": shape(student)}
        study.add(part, *(key | row for row in study.before_and_after(student, seed, cost, **changed)))


def values(rows: Sequence[Row], criterion: str, budget: float, stage: str) -> dict[int, float]:
    """Mean R@1 of both directions by seed."""
    key = {"criterion": criterion, "budget": budget, "stage": stage}
    return {row["seed"]: mean_r1(row) for row in rows if all(row[name] == value for name, value in key.items())}


def kept(rows: Sequence[Row], criterion: str, budget: float, stage: str) -> dict[int, float]:
    """Share of the trained dense model's mean R@1 by seed."""
    dense = values(rows, "dense", 1.0, "trained")
    found = values(rows, criterion, budget, stage)
    return {seed: value / dense[seed] for seed, value in found.items() if seed in dense}


def report_grid(rows: Sequence[Row]) -> str:
    """Tables of recall and of what is kept, and what came of the targets."""
    budgets = sorted({row["budget"] for row in rows} - {1.0}, reverse=True)
    names = [name for name in (*CRITERIA, *VARIANTS) if any(row["criterion"] == name for row in rows)]
    dense = [spread(list(values(rows, "dense", 1.0, stage).values())) for stage in ("pruned", "trained")]
    lines = [f"mean R@1 of the dense model: {dense[0]} as it is, {dense[1]} given the same training"]
    for stage, title in (("pruned", "before training"), ("trained", "after training")):
        lines += [
            "",
            f"| mean R@1 {title}, share of block parameters kept | " + " | ".join(f"{b:.0%}" for b in budgets) + " |",
        ]
        lines += ["|---" * (len(budgets) + 1) + "|"]
        lines += [
            f"| {name} | " + " | ".join(spread(list(values(rows, name, b, stage).values())) for b in budgets) + " |"
            for name in names
        ]
    lines += ["", "| share of the trained dense model's mean R@1 | " + " | ".join(f"{b:.0%}" for b in budgets) + " |"]
    lines += ["|---" * (len(budgets) + 1) + "|"]
    lines += [
        f"| {name} | "
        + " | ".join(spread(list(kept(rows, name, b, "trained").values()), "{:.3f}".format) for b in budgets)
        + " |"
        for name in names
    ]
    return "\n".join([*lines, "", *verdicts(rows, budgets, names)])


def report(study: Study) -> str:
    """Tables of all parts that have rows."""
    titles: dict[str, tuple[str, Callable[[Sequence[Row]], str]]] = {
        "grid": ("Criteria", report_grid),
        "long": ("Longer training", report_long),
        "losses": ("Terms of the loss", parts.report_losses),
        "order": ("Width and depth", parts.report_orders),
        "allocation": ("Allocation", parts.report_allocation),
        "teacher": ("The teacher's embeddings", parts.report_teacher),
        "sibling": ("A larger teacher", parts.report_siblings),
    }
    found = [f"\n## {title}\n\n{tell(rows)}" for part, (title, tell) in titles.items() if (rows := study.rows(part))]
    return "\n".join(found)


def report_long(rows: Sequence[Row]) -> str:
    """The same tables, and what training took; the reference is the dense model trained for as many steps."""
    lines = ["| criterion | share of block parameters kept | steps | CPU seconds |", "|---|---|---|---|"]
    cells = dict.fromkeys((row["criterion"], row["budget"]) for row in rows)
    for name, budget in sorted(cells, key=lambda cell: -cell[1]):
        mine = [row for row in rows if (row["criterion"], row["budget"], row["stage"]) == (name, budget, "trained")]
        steps, seconds = (spread([row[cost] for row in mine], "{:.0f}".format) for cost in ("steps", "cpu_seconds"))
        lines.append(f"| {name} | {budget:.0%} | {steps} | {seconds} |")
    return "\n".join([report_grid(rows), "", *lines])


def verdicts(rows: Sequence[Row], budgets: Sequence[float], names: Sequence[str]) -> list[str]:
    """A line per target, and how MoPE stands against the rival that is best, of the seeds that both have."""
    lines = []
    for budget in budgets:
        for own in (name for name in names if name.startswith("MoPE")):
            shares = list(kept(rows, own, budget, "trained").values())
            if shares and budget in TARGETS:
                gap = statistics.mean(shares) - TARGETS[budget]
                said = "met" if gap >= 0 else f"missed by {-gap:.3f}"
                text = spread(shares, "{:.3f}".format)
                lines.append(f"- {budget:.0%} kept, {own}, target {TARGETS[budget]:.2f}: {text}, {said}")
            for stage in ("pruned", "trained"):
                leads = _leads(rows, own, budget, stage, [name for name in names if not name.startswith("MoPE")])
                if leads:
                    rival = min(leads, key=lambda name: statistics.mean(leads[name]))
                    text = f"{own} leads the best rival, {rival}, by {spread(leads[rival])}"
                    lines.append(f"- {budget:.0%} kept, {stage}: {text} ({len(leads[rival])} seeds)")
    return lines


def _leads(rows: Sequence[Row], own: str, budget: float, stage: str, rivals: Sequence[str]) -> dict[str, list[float]]:
    """By how many points a criterion is above each rival, seed by seed."""
    mine, leads = values(rows, own, budget, stage), {}
    for rival in rivals:
        theirs = values(rows, rival, budget, stage)
        if both := sorted(mine.keys() & theirs.keys()):
            leads[rival] = [mine[seed] - theirs[seed] for seed in both]
    return leads


def plot(rows: Sequence[Row], long: Sequence[Row], path: Path) -> None:
    """What is kept against the share of parameters, before and after training."""
    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(9.5, 4.3), sharey=True, layout="constrained")
    for axis, (stage, title) in zip(axes, (("pruned", "pruned"), ("trained", "pruned, then trained")), strict=True):
        for name, marker in zip(CRITERIA, "os^Dvx", strict=True):
            budgets = sorted(b for b in {row["budget"] for row in rows} if kept(rows, name, b, stage))
            points = [[100 * share for share in kept(rows, name, b, stage).values()] for b in budgets]
            if not points or (name == "scratch" and stage == "pruned"):
                continue
            axis.errorbar(
                [100 * b for b in budgets], [statistics.mean(p) for p in points], [_deviation(p) for p in points],
                label=name, color=COLOURS[name], marker=marker, capsize=3, lw=2 if name == "MoPE" else 1.2,
                ls="--" if name == "scratch" else "-", zorder=3 if name == "MoPE" else 2,
            )  # fmt: skip
        for name, marker in zip(CRITERIA, "os^Dvx", strict=True):  # hollow, as lines of their own would be in the way
            floored = {b: kept(rows, f"{name}{FLOOR}", b, stage) for b in sorted({row["budget"] for row in rows})}
            for budget, found in floored.items():
                share = [100 * statistics.mean(found.values())] if found else []
                axis.plot([100 * budget] * len(share), share, marker, mec=COLOURS[name], mfc="w", ms=7, zorder=4)
        if stage == "trained" and any(row["criterion"] in VARIANTS for row in rows):
            axis.plot([], [], "s", mec="#555555", mfc="w", label="hollow: a head stays in each layer")
        axis.set(xlabel="block parameters kept (%)", title=title, ylim=(0, 105))
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].invert_xaxis()
    axes[1].invert_xaxis()
    budgets = sorted({row["budget"] for row in long})
    for criterion in (*CRITERIA, *VARIANTS):
        shares = {b: kept(long, criterion, b, "trained") for b in budgets}
        longer = {100 * b: 100 * statistics.mean(share.values()) for b, share in shares.items() if share}
        colour, floor = COLOURS[criterion.removesuffix(FLOOR)], criterion.endswith(FLOOR)
        aside = 0.7 if criterion.startswith("MoPE") else -0.7  # stars are close to each other
        if longer:
            axes[1].plot(
                [place + aside for place in longer], [*longer.values()], "*", c=colour, mfc="w" if floor else colour, ms=11,
                label=None if floor else f"{criterion}, trained longer", zorder=5,
            )  # fmt: skip
    axes[1].plot([100 * b for b in TARGETS], [100 * target for target in TARGETS.values()], "k_", ms=16, label="target")
    figure.legend(*axes[1].get_legend_handles_labels(), ncols=5, frameon=False, fontsize=8, loc="outside lower center")
    axes[0].set_ylabel("mean R@1 (% of the trained dense model's)")
    figure.suptitle("Tiny CLIP, both towers, by criterion: mean and standard deviation over seeds", fontsize=11)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def _deviation(values: Sequence[float]) -> float:
    return statistics.stdev(values) if len(values) > 1 else 0.0


def main() -> None:
    """Runs, prints, writes after every row."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="rows; gone on with if it is there")
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--budgets", type=float, nargs="+", default=BUDGETS)
    parser.add_argument("--criteria", nargs="+", choices=(*CRITERIA, *VARIANTS), default=CRITERIA)
    parser.add_argument("--part-seeds", type=int, nargs="+", default=[0, 1, 2], help="of all parts but the grid")
    parser.add_argument("--long-steps", type=int, default=1000, help="of the part long")
    parser.add_argument("--growing-steps", type=int, default=1000, help="of the larger teacher's training")
    parser.add_argument(
        "--long-criteria", nargs="+", choices=("dense", *CRITERIA, *VARIANTS), default=("dense", "MoPE")
    )
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--train", type=int, default=8000, help="training pairs")
    parser.add_argument("--pairs", type=int, default=1000, help="calibration pairs")
    parser.add_argument("--test", type=int, default=2000, help="test pairs")
    parser.add_argument("--groups", type=int, default=8, help="neuron groups per MLP")
    parser.add_argument("--scores", type=Path, help="folder where score tables are kept")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    names = ("steps", "batch_size", "learning_rate", "train", "pairs", "test", "groups")
    study = Study({name: getattr(args, name) for name in names}, args.json, args.scores)
    if args.scores:
        args.scores.mkdir(parents=True, exist_ok=True)
    budget = min(args.budgets, key=lambda share: abs(share - 0.2))
    todo: dict[str, Callable[[], None]] = {
        "grid": lambda: grid(study, args.seeds, args.budgets, ["dense", *args.criteria]),
        "losses": lambda: parts.losses(study, args.part_seeds, budget, args.steps),
        "order": lambda: parts.orders(study, args.part_seeds, 0.5, args.steps),
        "allocation": lambda: parts.allocation(study, args.part_seeds, 0.5, args.steps),
        "teacher": lambda: parts.teacher(study, args.part_seeds, budget, min(8, args.train // args.batch_size)),
        "sibling": lambda: parts.siblings(study, args.part_seeds, budget, args.steps, args.growing_steps),
        "long": lambda: grid(study, args.part_seeds, args.budgets, args.long_criteria, "long", steps=args.long_steps),
    }
    for part, run in todo.items():
        if part in args.parts:
            run()
    print(report(study))
    if args.plot:
        plot(study.rows("grid"), study.rows("long"), args.plot)


if __name__ == "__main__":
    main()
