"""Are layers worth removing, once the model is reconstructed? Width, depth, both orders, and all at once, without training.

    python benchmarks/depth.py --json benchmarks/figures/depth.json --shares 0.5 0.3 --seeds 0

On the tiny CLIP, by share of the blocks' parameters kept, or with ``--measure latency`` by share of the dense model's seconds
at batch 1. Each order is one or two calls of ``mope.compress``; the first of two goes to the geometric mean of the whole and
the budget. What all of them removed goes from the dense weights in one go, which are refitted with their inputs.
"""

import argparse
import statistics
import tempfile
from pathlib import Path
from typing import Any

import _study
import torch

import torch_pruning_mope as mope
from torch_pruning_mope.planning import Plan

WIDTH, DEPTH = ("head", "neurons"), ("block",)
ORDERS = {
    "width": (WIDTH,),
    "depth": (DEPTH,),
    "depth, then width": (DEPTH, WIDTH),
    "width, then depth": (WIDTH, DEPTH),
    "joint": ((*WIDTH, *DEPTH),),
}


def compressed(study: _study.Study, seed: int, share: float, measure: str, order: str, work: Path) -> mope.DualEncoder:
    """The dense model without what an order removes, refitted."""
    scored = study.calibration(seed)
    more = mope.emoji_pairs("calibration", study.settings["reconstruct_pairs"], seed=seed)
    calls, plans = ORDERS[order], list[Plan]()
    for place, kinds in enumerate(calls):
        goal = share ** ((place + 1) / len(calls))
        budget: Any = int(study.allowed(goal)) if measure == "parameters" else goal * sum(seconds(study.dense).values())
        path = work / f"{measure}-{seed}-{share}-{order}-{place}"
        encoder = study.built(plan.units for plan in plans)
        if plans:
            mope.reconstruct(encoder, study.dense, more, inputs=False, progress=False)
        mope.compress(
            encoder, scored, kinds=kinds, groups=study.settings["groups"], reconstruct_pairs=more, inputs=False, path=path,
            progress=False, **{measure: budget},
        )  # fmt: skip
        plans += [Plan.load(file) for file in sorted(path.glob("stage-*/plan.json"))]
    small = study.built(plan.units for plan in plans)
    mope.reconstruct(small, study.dense, more, progress=False)
    return small


def seconds(encoder: mope.DualEncoder) -> dict[Any, float]:
    """Median seconds of each tower at batch 1."""
    return mope.cost.latencies(encoder, repeats=50)


def speed(study: _study.Study, small: mope.DualEncoder) -> float:
    """Seconds of a model over those of the dense one, the median of paired rounds."""
    rounds = (sum(seconds(small).values()) / sum(seconds(study.dense).values()) for _ in range(5))
    return statistics.median(rounds)


def report(rows: list[Any]) -> str:
    """A line per order: R@1, share of the blocks' parameters kept, of the time under a budget of it, layers of both towers."""
    cells = list(dict.fromkeys((row["measure"], row["share"]) for row in rows))
    head = " | ".join(f"{share:.0%} of the {measure}" for measure, share in cells)
    lines = [f"| | {head} |", "|---" * (len(cells) + 1) + "|"]
    for order in ORDERS:
        found = [
            [row for row in rows if (row["measure"], row["share"], row["order"]) == (*cell, order)] for cell in cells
        ]
        lines.append(f"| {order} | " + " | ".join(map(_cell, found)) + " |")
    return "\n".join(lines)


def _cell(rows: list[Any]) -> str:
    if not rows:
        return "–"
    names = [name for name in ("kept", "time") if name in rows[0]]
    shares = [f"{_study.spread([100 * row[name] for row in rows], '{:.0f}'.format)} %" for name in names]
    layers = ", ".join(dict.fromkeys("+".join(map(str, row["layers"])) for row in rows))
    return f"{_study.spread([row['r1'] for row in rows])} ({', '.join([*shares, layers])})"


def main() -> None:
    """Makes the rows that are missing and prints them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="file of the rows; those that are there are not made again")
    parser.add_argument("--measure", choices=("parameters", "latency"), default="parameters")
    parser.add_argument("--shares", type=float, nargs="+", default=[0.5, 0.3])
    parser.add_argument("--orders", nargs="+", choices=ORDERS, default=ORDERS)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--pairs", type=int, default=1000, help="pairs that are scored on")
    parser.add_argument("--reconstruct-pairs", type=int, default=4000)
    parser.add_argument("--test", type=int, default=2000, help="pairs of the test gallery")
    parser.add_argument("--groups", type=int, default=8, help="neuron groups per MLP")
    options = parser.parse_args()
    torch.set_num_threads(1)
    settings = {name: getattr(options, name) for name in ("pairs", "reconstruct_pairs", "test", "groups")}
    study = _study.Study(settings, options.json)
    for seed in options.seeds:
        for share in options.shares:
            for order in options.orders:
                key = {"measure": options.measure, "share": share, "order": order, "seed": seed}
                if study.has("rows", **key):
                    continue
                with tempfile.TemporaryDirectory() as folder:
                    small = compressed(study, seed, share, options.measure, order, Path(folder))
                kept = _study.blocks_size(small) / study.size
                layers = [len(tower.blocks) for tower in small.towers.values()]
                row = key | {"r1": _study.mean_r1(_study.recall(small, study.test)), "kept": kept, "layers": layers}
                study.add("rows", row | ({"time": speed(study, small)} if options.measure == "latency" else {}))
    print(report(study.rows("rows")))


if __name__ == "__main__":
    main()
