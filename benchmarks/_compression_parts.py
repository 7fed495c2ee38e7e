"""Smaller questions of ``compression.py``: loss terms, width and depth, allocation, the teacher's embeddings."""

import copy
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from _study import Row, Study, blocks_size, mean_r1, spread
from paths import hessian
from torch import nn

import torch_pruning_mope as mope
from torch_pruning_mope.data import emoji_batches

TERMS: dict[str, dict[str, float]] = {
    "contrastive alone (no distillation)": {"similarity": 0.0, "features": 0.0},
    "contrastive + similarity": {"features": 0.0},
    "contrastive + features": {"similarity": 0.0},
    "contrastive + hidden": {"similarity": 0.0, "features": 0.0, "hidden": 1.0},
    "all but hidden": {},
    "all": {"hidden": 1.0},
}
WIDTH = ("head", "neurons")
ALL_KINDS = 1000
"""The step from which the stream of scenes has all kinds."""


def losses(study: Study, seeds: Sequence[int], budget: float, steps: int) -> None:
    """Each term's contribution: at as many steps, and at the CPU time that the slowest takes.

    With hidden states the teacher itself runs in every step; else its embeddings are computed once, which counts.
    """
    for seed in seeds:
        for name, weights in TERMS.items():
            key = {"terms": name, "seed": seed, "budget": budget, "mode": "equal steps"}
            if not study.has("losses", **key):
                study.add("losses", key | _distilled(study, seed, budget, weights, steps))
        [slowest] = [
            row for row in study.rows("losses") if row["seed"] == seed and _is(row, "all", "equal steps", budget)
        ]
        for name in ("contrastive alone (no distillation)", "all but hidden"):
            key = {"terms": name, "seed": seed, "budget": budget, "mode": "equal time"}
            if study.has("losses", **key):
                continue
            [row] = [
                row for row in study.rows("losses") if row["seed"] == seed and _is(row, name, "equal steps", budget)
            ]
            left = slowest["cpu_seconds"] - row["teacher_cpu_seconds"]
            more = max(steps, round(steps * left / row["cpu_seconds"]))
            study.add("losses", key | _distilled(study, seed, budget, TERMS[name], more))


def _is(row: Row, terms: str, mode: str, budget: float) -> bool:
    return (row["terms"], row["mode"], row["budget"]) == (terms, mode, budget)


def _distilled(study: Study, seed: int, budget: float, weights: dict[str, float], steps: int) -> Row:
    loss = mope.DistillationLoss(**{"features": 1000.0, **weights})
    pairs, embeddings = study.train(seed)
    teacher: Any = (
        study.dense if "hidden" in loss.weights else embeddings if set(loss.weights) - {"contrastive"} else None
    )
    once = 0.0
    if teacher is embeddings:  # timed anew on some of the pairs, since they are made once for many runs here
        began, some = time.process_time(), pairs.first(256)
        mope.TeacherCache.of(study.dense, some)
        seen = min(pairs.num_images, steps * study.settings["batch_size"])
        once = (time.process_time() - began) * seen / some.num_images
    student, _ = study.pruned(seed, budget)
    trained = study.distil(student, seed, loss=loss, teacher=teacher, steps=steps)
    return study.measure(student) | trained | {"teacher_cpu_seconds": once}


def report_losses(rows: Sequence[Row]) -> str:
    """A line per objective and mode."""
    lines = ["| objective | mode | steps | CPU seconds, the teacher's among them | mean R@1 |", "|---|---|---|---|---|"]
    for mode in ("equal steps", "equal time"):
        for name in TERMS:
            mine = [row for row in rows if (row["terms"], row["mode"]) == (name, mode)]
            if mine:
                steps = spread([row["steps"] for row in mine], "{:.0f}".format)
                seconds = spread([row["cpu_seconds"] + row["teacher_cpu_seconds"] for row in mine], "{:.0f}".format)
                lines.append(f"| {name} | {mode} | {steps} | {seconds} | {spread([mean_r1(row) for row in mine])} |")
    return "\n".join(lines)


def orders(study: Study, seeds: Sequence[int], budget: float, steps: int) -> None:
    """Depth alone, then the others at the number of parameters that it left."""
    for seed in seeds:
        if study.has("order", seed=seed):
            continue
        pairs = study.calibration(seed).first(500)
        dense = study.built(())
        blocks = _scored(study, dense, pairs, ("block",), "greedy")
        depth = mope.make_plan(dense, blocks, parameters=study.allowed(budget)).units
        students = {"depth only": study.built([depth])}
        left = blocks_size(students["depth only"])
        width = [score.unit for score in _scored(study, dense, pairs, WIDTH, "joint").scores]
        students["width only"] = study.built([study.cut(width, left, whole=False)])
        students["width, then depth"] = _width_then_depth(study, pairs, width, left)
        half = study.built([depth[: max(1, len(depth) // 2)]])
        rest = _scored(study, half, pairs, WIDTH, "joint")
        fixed = sum(of.parameters for of in mope.cost.footprints(half).values()) - blocks_size(half)
        mope.make_plan(half, rest, parameters=fixed + left).apply(half)
        students["depth, then width"] = half
        rows = []
        for name, student in students.items():
            layers = [len(tower.blocks) for tower in student.towers.values()]
            key = {"order": name, "seed": seed, "layers": layers}
            rows += [key | row for row in study.before_and_after(student, seed, steps=steps)]
        study.add("order", *rows)


def _width_then_depth(study: Study, pairs: mope.Pairs, width: list[mope.scoring.Unit], left: int) -> mope.DualEncoder:
    """Heads and neurons go, then blocks, each about half of the way to a number of parameters."""

    def narrow(amount: int) -> mope.DualEncoder:
        return study.built([study.cut(width, amount, whole=False)])

    amount = round((left * study.size) ** 0.5)
    gone: list[mope.scoring.Unit] = []
    for _ in range(2):  # which blocks go depends on the width a little, and the other way round
        student = narrow(amount)
        path = _removable(student, _scored(study, student, pairs, ("block",), "greedy"))
        gone = path[:1]
        for block in path[1:]:
            if blocks_size(_without(student, gone)) <= left:
                break
            gone.append(block)
        low, high = left, study.size
        while high - low > study.size // 400:
            amount = (low + high) // 2
            low, high = (amount, high) if blocks_size(_without(narrow(amount), gone)) <= left else (low, amount)
        amount = low
    return _without(narrow(amount), gone)


def _removable(encoder: mope.DualEncoder, table: mope.ScoreTable) -> list[mope.scoring.Unit]:
    """The blocks of a path, but for each tower's last."""
    left = {name: len(tower.blocks) for name, tower in encoder.towers.items()}
    found = []
    for unit in (score.unit for score in table.scores):
        left[unit.tower] -= 1
        if left[unit.tower]:
            found.append(unit)
    return found


def _without(student: mope.DualEncoder, blocks: Sequence[mope.scoring.Unit]) -> mope.DualEncoder:
    """A copy without some blocks."""
    smaller = mope.DualEncoder(copy.deepcopy(student.model))
    mope.remove_units(smaller, blocks)
    return smaller


def _scored(
    study: Study, encoder: mope.DualEncoder, pairs: mope.Pairs, kinds: tuple[str, ...], interaction: Any
) -> mope.ScoreTable:
    return mope.score(
        encoder, pairs, metric="contrastive_loss", kinds=kinds, groups=min(8, study.settings["groups"]),
        interaction=interaction, rewire=hessian(), progress=False,
    )  # fmt: skip


def report_orders(rows: Sequence[Row]) -> str:
    """A line per order."""
    lines = [
        "| order | layers left (image, text) | share of block parameters | mean R@1 pruned | trained |",
        "|---|---|---|---|---|",
    ]
    for name in dict.fromkeys(row["order"] for row in rows):
        mine = [row for row in rows if row["order"] == name]
        layers = " or ".join(dict.fromkeys(f"{row['layers'][0]}, {row['layers'][1]}" for row in mine))
        by = [spread([mean_r1(row) for row in mine if row["stage"] == stage]) for stage in ("pruned", "trained")]
        lines.append(
            f"| {name} | {layers} | {spread([row['share'] for row in mine][::2], '{:.3f}'.format)} | {by[0]} | {by[1]} |"
        )
    return "\n".join(lines)


def allocation(study: Study, seeds: Sequence[int], ratio: float, steps: int) -> None:
    """One ratio in every layer against a plan by score per parameter or multiply-add, of the same scores.

    The plan has as many parameters, or is as fast by the clock (both at a batch of 32, timed by turns).
    """
    for seed in seeds:
        if study.has("allocation", seed=seed):
            continue
        dense = study.built(())
        table = _scored(study, dense, study.calibration(seed).first(500), WIDTH, "nested")
        uniform = study.built(())
        mope.prune(uniform, mope.MoPEImportance(uniform, table=table), head_ratio=ratio, ffn_ratio=ratio)
        left = sum(of.parameters for of in mope.cost.footprints(uniform).values())
        students = {
            "uniform": uniform,
            "plan, equal parameters": study.built([mope.make_plan(dense, table, parameters=left).units]),
        }
        students["plan, equal latency"] = _as_fast(study, dense, table, uniform)
        clocks = _timed(students)
        rows = []
        for name, student in students.items():
            key = {"allocation": name, "seed": seed, "ratio": ratio, "milliseconds": 1e3 * clocks[name]}
            rows += [key | row for row in study.before_and_after(student, seed, steps=steps)]
        study.add("allocation", *rows)


def _as_fast(
    study: Study, dense: mope.DualEncoder, table: mope.ScoreTable, other: mope.DualEncoder
) -> mope.DualEncoder:
    """The largest plan that is no slower than another student, by halving; a clock that is shared is read by turns."""
    low, high = 0.3, 0.7
    best = study.built([mope.make_plan(dense, table, parameters=study.allowed(low)).units])
    for _ in range(5):
        share = (low + high) / 2
        student = study.built([mope.make_plan(dense, table, parameters=study.allowed(share)).units])
        clocks = _timed({"own": student, "other": other})
        if clocks["own"] <= clocks["other"]:
            low, best = share, student
        else:
            high = share
    return best


@torch.inference_mode()
def _timed(students: dict[str, mope.DualEncoder], repeats: int = 20) -> dict[str, float]:
    """Median seconds of both towers at a batch of 32, by turns."""
    times: dict[str, list[float]] = {name: [] for name in students}
    images, tokens = (next(iter(students.values())).example_inputs[name] for name in ("images", "tokens"))
    images, tokens = images.expand(32, -1, -1, -1).contiguous(), tokens.expand(32, -1).contiguous()
    for _ in range(repeats + 2):
        for name, student in students.items():
            began = time.perf_counter()
            student.embed("image", images)
            student.embed("text", tokens)
            times[name].append(time.perf_counter() - began)
    return {name: statistics.median(own[2:]) for name, own in times.items()}


def report_allocation(rows: Sequence[Row]) -> str:
    """A line per way to share out."""
    lines = [
        "| allocation | share of block parameters | time at batch 32, of uniform's | mean R@1 pruned | trained |",
        "|---|---|---|---|---|",
    ]
    uniform = {row["seed"]: row["milliseconds"] for row in rows if row["allocation"] == "uniform"}
    for name in dict.fromkeys(row["allocation"] for row in rows):
        mine = [row for row in rows if row["allocation"] == name]
        by = [spread([mean_r1(row) for row in mine if row["stage"] == stage]) for stage in ("pruned", "trained")]
        share = spread([row["share"] for row in mine][::2], "{:.3f}".format)
        clock = spread([row["milliseconds"] / uniform[row["seed"]] for row in mine][::2], "{:.2f}".format)
        lines.append(f"| {name} | {share} | {clock} | {by[0]} | {by[1]} |")
    return "\n".join(lines)


def siblings(study: Study, seeds: Sequence[int], budget: float, steps: int, growing: int) -> None:
    """Students of the model itself, and of a larger sibling: two more layers in each tower, trained here, once.

    The sibling begins as the same function, its new layers adding nothing, and is trained with the plain contrastive loss on
    scenes of the training split that are drawn as it goes: on as few as the students see, it learns them by heart.
    """
    left = [seed for seed in seeds if not study.has("sibling", seed=seed, budget=budget)]
    if not left:
        return
    larger = mope.DualEncoder(grown())
    scenes = emoji_batches(ALL_KINDS + growing, study.settings["batch_size"], seed=1, start=ALL_KINDS)
    cost = study.distil(larger, left[0], pairs=scenes, teacher=None, loss=None, steps=growing)  # the plain loss
    grew = {"growing_steps": growing, "growing_cpu_seconds": cost["cpu_seconds"]}
    teachers = {"itself": study.dense, "larger sibling": larger}
    recalls = {name: mean_r1(study.measure(model)) for name, model in teachers.items()}
    for seed in left:
        pairs, own = study.train(seed)
        rows = []
        for name, model in teachers.items():
            size = sum(p.numel() for p in model.model.parameters())
            about = {
                "teacher": name,
                "seed": seed,
                "budget": budget,
                "teacher_parameters": size,
                "teacher_r1": recalls[name],
            }
            teacher = own if model is study.dense else mope.TeacherCache.of(model, pairs)
            student, _ = study.pruned(seed, budget)
            trained = study.distil(student, seed, teacher=teacher, steps=steps)
            rows.append(about | grew | study.measure(student) | trained)
        study.add("sibling", *rows)


def grown(more: int = 2) -> nn.Module:
    """A larger tiny CLIP of the same function: its last layers again, whose outputs are zero until they are trained."""
    larger: Any = mope.load_tiny_clip()
    for blocks in (larger.visual.transformer.resblocks, larger.transformer.resblocks):
        for block in [copy.deepcopy(blocks[-1]) for _ in range(more)]:
            for layer in (block.attn.out_proj, block.mlp.c_proj):
                nn.init.zeros_(layer.weight)
                nn.init.zeros_(layer.bias)
            blocks.append(block)
    return larger


def report_siblings(rows: Sequence[Row]) -> str:
    """A line per teacher."""
    lines = ["| teacher | its parameters | its mean R@1 | the student's |", "|---|---|---|---|"]
    for name in dict.fromkeys(row["teacher"] for row in rows):
        mine = [row for row in rows if row["teacher"] == name]
        own, student = spread([row["teacher_r1"] for row in mine]), spread([mean_r1(row) for row in mine])
        lines.append(f"| {name} | {mine[0]['teacher_parameters'] / 1e6:.2f} M | {own} | {student} |")
    return "\n".join(lines)


def teacher(study: Study, seeds: Sequence[int], budget: float, batches: int) -> None:
    """Images per second from the second epoch on, the teacher running or its embeddings read; and whether losses agree."""
    for seed in seeds:
        if study.has("teacher", seed=seed, budget=budget):
            continue
        size = study.settings["batch_size"]
        pairs = study.train(seed)[0].first(batches * size)
        found: dict[str, tuple[float, list[float]]] = {}
        for name, make in _teachers(study, pairs).items():
            ends = [time.process_time()]
            loss, student = mope.DistillationLoss(features=1000.0), study.pruned(seed, budget)[0]
            history = mope.distill(
                student, pairs, teacher=make(), loss=loss, steps=2 * batches, batch_size=size, seed=seed, progress=False,
                learning_rate=study.settings["learning_rate"], on_step=lambda _, ends=ends: ends.append(time.process_time()),
            )  # fmt: skip
            found[name] = batches * size / (ends[-1] - ends[batches]), [step.loss for step in history]
        differences = [abs(a - b) for a, b in zip(found["running"][1], found["cached"][1], strict=True)]
        speeds = {f"{name}_images_per_cpu_second": value for name, (value, _) in found.items()}
        gain = found["cached"][0] / found["running"][0]
        study.add(
            "teacher", {"seed": seed, "budget": budget, "gain": gain, "largest_difference": max(differences)} | speeds
        )


def _teachers(study: Study, pairs: mope.Pairs) -> dict[str, Callable[[], Any]]:
    return {"running": lambda: study.dense, "cached": lambda: mope.TeacherCache.of(study.dense, pairs)}


def report_teacher(rows: Sequence[Row]) -> str:
    """A line per size of the student."""
    lines = [
        "| student's share | images/s, teacher running | cached | gain (target 1.6) | largest difference of losses |",
        "|---|---|---|---|---|",
    ]
    for budget in sorted({row["budget"] for row in rows}, reverse=True):
        mine = [row for row in rows if row["budget"] == budget]
        speeds = [
            spread([row[f"{name}_images_per_cpu_second"] for row in mine], "{:.0f}".format)
            for name in ("running", "cached")
        ]
        gain = spread([row["gain"] for row in mine], "{:.2f}".format)
        lines.append(
            f"| {budget:.0%} | {speeds[0]} | {speeds[1]} | {gain} | {max(row['largest_difference'] for row in mine):.1e} |"
        )
    return "\n".join(lines)
