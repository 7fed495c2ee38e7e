"""What the parts of ``compression.py`` share: data, students of a size, training, recall, and rows on disk."""

import copy
import functools
import json
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import paths
import torch
import torch_pruning as tp
from torch import nn

import torch_pruning_mope as mope
from torch_pruning_mope.cost import freed_parameters
from torch_pruning_mope.data import _tiny_clip

Row = dict[str, Any]
STAGES = (0.5, 0.2)
"""Shares of the blocks at which MoPE scores what is left again: a new order of the neurons, and no wider model than need be."""
DEEPEST = 0.1
"""Share of the blocks down to which MoPE scores."""
STOCK = {
    "L1": lambda: tp.importance.GroupMagnitudeImportance(p=1, group_reduction="sum", normalizer=None),
    "Taylor": lambda: tp.importance.GroupTaylorImportance(group_reduction="sum", normalizer=None, bias=True),
    "Hessian": paths.hessian,
}
"""Rivals: importances that add up over a unit's weights, ranked over all layers per parameter, as MoPE's joint path is."""


class Study:
    """The tiny CLIP, which is both what is pruned and the teacher, and what has been found so far.

    Args:
        settings: ``steps``, ``learning_rate``, ``batch_size``, ``train``, ``pairs``, ``test`` (numbers of pairs), ``groups``.
        file: Where rows are kept; those that are there are not made again. None for memory.
        scores: Folder for score tables; None to make them anew in each process.
        dense: Another model than the tiny CLIP.
        test: Its test pairs.
    """

    def __init__(
        self,
        settings: dict[str, Any],
        file: Path | None = None,
        scores: Path | None = None,
        *,
        dense: mope.DualEncoder | None = None,
        test: mope.Pairs | None = None,
    ) -> None:
        self.settings, self.file, self.folder = settings, file, scores
        self.dense = mope.DualEncoder(mope.load_tiny_clip()) if dense is None else dense
        self.test = mope.emoji_pairs("test", settings["test"], seed=0) if test is None else test
        self.bench = paths.Bench(self.test, None if dense is None else copy.deepcopy(dense))
        self.size = blocks_size(self.dense)
        self.found: dict[str, Any] = {}
        if file is not None and file.exists():
            self.found = json.loads(file.read_text())
            other = {k: (v, settings[k]) for k, v in self.found["settings"].items() if settings[k] != v}
            if other:
                raise SystemExit(f"{file} is of another run, (there, here): {other}. Choose another file.")

    # Rows

    def rows(self, part: str) -> list[Row]:
        """Rows of a part."""
        return self.found.setdefault(part, [])  # type: ignore[no-any-return]

    def has(self, part: str, **key: Any) -> bool:
        """Whether a part has a row like this."""
        return any(all(row.get(name) == value for name, value in key.items()) for row in self.rows(part))

    def add(self, part: str, *rows: Row) -> None:
        """Rows that were found; they are on disk when this returns."""
        for row in rows:
            self.rows(part).append(row)
            print(part, {k: round(v, 3) if isinstance(v, float) else v for k, v in row.items()}, flush=True)
        self.write()

    def write(self) -> None:
        """Everything found so far, whole or not at all."""
        if self.file is not None:
            content = {"settings": self.settings, "machine": machine()} | self.found | {"settings": self.settings}
            partial = self.file.with_name(self.file.name + ".part")
            partial.write_text(json.dumps(content, indent=1) + "\n")
            partial.replace(self.file)

    # Data, by seed

    @functools.lru_cache(1)  # noqa: B019  as long-lived as the process
    def train(self, seed: int) -> tuple[mope.Pairs, mope.TeacherCache]:
        """Training pairs, and what the teacher makes of them."""
        pairs = mope.emoji_pairs("train", self.settings["train"], seed=seed)
        return pairs, mope.TeacherCache.of(self.dense, pairs)

    @functools.lru_cache(1)  # noqa: B019
    def calibration(self, seed: int) -> mope.Pairs:
        """Pairs that criteria look at."""
        return mope.emoji_pairs("calibration", self.settings["pairs"], seed=seed)

    @functools.lru_cache(8)  # noqa: B019
    def table(self, seed: int, stage: float = 1.0, min_heads: int = 0) -> tuple[mope.ScoreTable, float]:
        """MoPE's joint path of what is left at a stage, down to the next one, and the seconds of CPU that it took."""
        floor = min_heads if stage < 1 else 0
        encoder = self.built(self.plan(seed, stage, floor) if stage < 1 else ())
        stop = max((other for other in (*STAGES, DEEPEST) if other < stage), default=DEEPEST)
        path = self.folder and self.folder / f"{seed}-{stage}{f'-{floor}' if floor else ''}.json"
        # Norms and output biases go with no unit, and heads that must stay are passed over.
        until = min(1.0, (stage - stop) / stage + (0.25 if floor else 0.03))
        began = time.process_time()
        table = mope.score(
            encoder, self.calibration(seed), metric="contrastive_loss", kinds=("head", "neurons"), interaction="joint",
            groups=self.settings["groups"], rewire=paths.hessian(), until=until, path=path, progress=False,
        )  # fmt: skip
        return table, time.process_time() - began

    @functools.lru_cache(8)  # noqa: B019
    def order(self, seed: int, criterion: str) -> tuple[paths.Order, float]:
        """All heads and neurons, what a rival misses least first, and the seconds of CPU that it took."""
        began = time.process_time()
        if criterion == "random":
            generator = torch.Generator().manual_seed(seed)
            units = self.order(seed, "L1")[0]
            return [units[i] for i in torch.randperm(len(units), generator=generator).tolist()], 0.0
        order = self.bench.ranked(self.bench.stock(self.calibration(seed), STOCK[criterion]()))
        return order, time.process_time() - began

    # Students

    @functools.lru_cache(64)  # noqa: B019
    def plan(self, seed: int, budget: float, min_heads: int = 0) -> tuple[tuple[mope.scoring.Unit, ...], ...]:
        """What goes by MoPE, stage by stage; channels of a stage are numbered as in the model that those before it left."""
        stage = min((other for other in STAGES if other > budget), default=1.0)
        before = self.plan(seed, stage, min_heads) if stage < 1 else ()
        table, _ = self.table(seed, stage, min_heads)
        found = mope.make_plan(self.built(before), table, parameters=self.allowed(budget), min_heads=min_heads)
        return (*before, found.units)

    def built(self, stages: Iterable[Iterable[mope.scoring.Unit]], model: nn.Module | None = None) -> mope.DualEncoder:
        """A copy of the dense model, or of another of its shape, without what goes in each stage."""
        smaller = mope.DualEncoder(copy.deepcopy(model or self.dense.model))
        for units in stages:
            mope.remove_units(smaller, list(units))
        return smaller

    def pruned(self, seed: int, budget: float, min_heads: int = 0) -> tuple[mope.DualEncoder, float]:
        """MoPE's student, and the seconds of CPU that its scores took."""
        student = self.built(self.plan(seed, budget, min_heads))
        return student, sum(self.table(seed, stage, min_heads)[1] for stage in (1.0, *STAGES) if stage > budget)

    def allowed(self, budget: float) -> float:
        """Parameters that may be left in all, for a share of those of the blocks."""
        fixed = sum(of.parameters for of in mope.cost.footprints(self.dense).values()) - self.size
        return fixed + budget * self.size

    def cut(
        self, order: Sequence[mope.scoring.Unit], left: int, *, min_heads: int = 0, whole: bool = True
    ) -> list[mope.scoring.Unit]:
        """The first units of an order whose removal leaves no more than this many parameters; empty layers go whole."""
        chosen: list[mope.scoring.Unit] = []
        heads = {(layer.tower, layer.index): layer.block.attention.num_units for layer in self.dense.layers}  # type: ignore[union-attr]
        freed = 0
        for unit in order:
            if freed >= self.size - left:
                break
            if unit.kind == "head":
                if heads[unit.tower, unit.layer] <= min_heads:
                    continue
                heads[unit.tower, unit.layer] -= 1
            chosen.append(unit)
            freed += freed_parameters(self.dense, unit)
        return self.whole(chosen) if whole else chosen

    def whole(self, units: Sequence[mope.scoring.Unit]) -> list[mope.scoring.Unit]:
        """The same units, with a block in place of all its heads and neurons, as long as its tower keeps another."""
        gone: dict[tuple[str, int], int] = defaultdict(int)
        for unit in units:
            gone[unit.tower, unit.layer] += len(unit.channels)
        blocks = {
            (layer.tower, layer.index): sum(p.channels for p in layer.block.prunables) for layer in self.dense.layers
        }
        empty = [key for key, count in gone.items() if count == blocks[key]]
        for tower in ("image", "text"):
            mine = [key for key in empty if key[0] == tower]
            if len(mine) == len(self.dense.towers[tower].blocks):  # type: ignore[index]
                empty.remove(mine[-1])
        kept = [unit for unit in units if (unit.tower, unit.layer) not in empty]
        return kept + [mope.scoring.Unit("block", tower, layer, 0) for tower, layer in empty]  # type: ignore[arg-type]

    def scratch(self, seed: int, budget: float) -> mope.DualEncoder:
        """A model of the same shape as MoPE's, with fresh weights."""
        torch.manual_seed(seed)
        return self.built(self.plan(seed, budget), mope.DualEncoder(_tiny_clip.build_tiny_clip()).model.eval())

    # Training and recall

    def distil(self, student: mope.DualEncoder, seed: int, **changed: Any) -> Row:
        """Mutates the student: trains it to do what the dense model does, or as told; says how long that took."""
        pairs, teacher = self.train(seed)
        options: dict[str, Any] = {name: self.settings[name] for name in ("steps", "learning_rate", "batch_size")}
        options |= {"pairs": pairs, "teacher": teacher, "loss": mope.DistillationLoss(features=1000.0)} | changed
        began = time.process_time(), time.perf_counter()
        history = mope.distill(student, seed=seed, progress=False, **options)
        return {
            "steps": len(history),
            "cpu_seconds": time.process_time() - began[0],
            "seconds": time.perf_counter() - began[1],
            "loss": history[-1].loss,
        }

    def measure(self, student: mope.DualEncoder) -> Row:
        """Recall on the test pairs, in percent, and what is left of the blocks."""
        return recall(student, self.test) | {"share": blocks_size(student) / self.size}

    def before_and_after(
        self, student: mope.DualEncoder, seed: int, cost: Row | None = None, **changed: Any
    ) -> list[Row]:
        """Mutates the student: a row as it is, and one once it is trained."""
        pruned = {"stage": "pruned"} | self.measure(student) | (cost or {})
        trained = self.distil(student, seed, **changed)
        return [pruned, {"stage": "trained"} | self.measure(student) | trained]


def shape(encoder: mope.DualEncoder) -> dict[str, list[list[int]]]:
    """Heads and neurons of each layer that is left, by tower."""
    return {
        tower: [
            [layer.block.attention.num_units if layer.block.attention else 0, layer.block.feed_forward.channels]  # type: ignore[union-attr]
            for layer in encoder.layers
            if layer.tower == tower
        ]
        for tower in encoder.towers
    }


def blocks_size(encoder: mope.DualEncoder) -> int:
    """Parameters of the blocks of both towers."""
    return sum(p.numel() for layer in encoder.layers for p in layer.block.module.parameters())


@torch.inference_mode()
def recall(encoder: mope.DualEncoder, pairs: mope.Pairs) -> Row:
    """R@1 of both directions, in percent."""
    encoder.model.eval()
    images = torch.cat([encoder.embed("image", part) for part in pairs.images.split(250)])
    texts = torch.cat([encoder.embed("text", part) for part in pairs.tokens.split(250)])
    return {
        f"{way}_r1": 100 * mope.metrics.Recall((1,), (way,))(images, texts, pairs.image_index) for way in ("i2t", "t2i")
    }


def mean_r1(row: Row) -> float:
    """Mean R@1 of both directions."""
    return (row["i2t_r1"] + row["t2i_r1"]) / 2  # type: ignore[no-any-return]


def spread(values: Sequence[float], form: Callable[[float], str] = "{:.1f}".format) -> str:
    """Mean ± standard deviation over seeds."""
    if not values:
        return "–"
    text = form(statistics.mean(values))
    return f"{text} ± {form(statistics.stdev(values))}" if len(values) > 1 else text


def machine() -> Row:
    """What it ran on."""
    models = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    name = models[0].split(":")[1].strip() if models else "unknown"
    return {"cpu": name, "threads": torch.get_num_threads(), "torch": torch.__version__}
