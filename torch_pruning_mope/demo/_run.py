"""The demo: one model, several criteria, the same counts, the same training, one test split."""

import copy
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch_pruning as tp
from rich.table import Table
from tqdm import tqdm

from ..checkpoint import load_model
from ..data import Pairs, emoji_pairs
from ..distillation import TeacherCache, distill
from ..dual_encoder import DualEncoder
from ..evaluation import evaluate
from ..importance import MoPEImportance, UnitImportance, WeightedImportance
from ..loading import LoadedModel
from ..pruning import Counts
from ..pruning._prune import prune
from ..reconstruction import reconstruct
from ..scoring import ScoreTable

LABELS = {"mope": "MoPE", "fisher": "Fisher", "taylor": "Taylor", "l1": "L1 magnitude", "random": "random"}


def _mope(encoder: DualEncoder, pairs: Pairs, progress: bool) -> UnitImportance:
    # Not ``reconstruct=True``: at the demo's ratios it takes a quarter more time for the same recall once reconstructed (84.6
    # and 84.7), and before that recall is far lower (48 and 75). It pays for deeper cuts in stages: see ``compress``.
    return MoPEImportance(encoder, pairs, metric="contrastive_loss", progress=progress)


def _by_gradients(criterion: type, *, squared: bool = False) -> "Criterion":
    """A criterion of Torch-Pruning that reads ``.grad``."""

    def make(encoder: DualEncoder, pairs: Pairs, progress: bool) -> UnitImportance:
        encoder.accumulate_gradients(pairs, squared=squared, progress=progress)
        return _alone(encoder, criterion())

    return make


def _alone(encoder: DualEncoder, criterion: Any) -> UnitImportance:
    """A Torch-Pruning criterion without ties, so that it removes as many units as all others."""
    return WeightedImportance(encoder, [(criterion, 1.0)])


Criterion = Callable[[DualEncoder, Pairs, bool], UnitImportance]
CRITERIA: dict[str, Criterion] = {
    "mope": _mope,
    "fisher": _by_gradients(tp.importance.GroupHessianImportance, squared=True),
    "taylor": _by_gradients(tp.importance.GroupTaylorImportance),
    "l1": lambda encoder, *_: _alone(encoder, tp.importance.GroupMagnitudeImportance(p=1)),
    "random": lambda encoder, *_: _alone(encoder, tp.importance.RandomImportance()),
}
"""Each makes an importance from an encoder, calibration pairs, and whether to show progress bars; may fill ``.grad``."""


BATCH = 128
TRAINING_PAIRS = 4000
RECONSTRUCTION_PAIRS = 1000
"""Training pairs that models are reconstructed on; more add little at the demo's ratios."""

Row = dict[str, Any]


@dataclass(frozen=True)
class DemoResult:
    """Results of the demo.

    Attributes:
        rows: Rows of :func:`evaluate`, dense first, with ``seconds``: the time of scoring and removal, of reconstruction, or of
            training.
        scores: MoPE of the dense model's heads and neuron groups.
        before: Units of the dense model.
        removed: Units that each criterion removed.
        embedding_parameters: Parameters of the token embedding, counted in every row and never pruned.
    """

    rows: list[Row]
    scores: ScoreTable
    before: Counts
    removed: Counts
    embedding_parameters: int


class _Demo:
    """Settings and data that all rows share."""

    def __init__(
        self, loaded: LoadedModel, ratios: dict[str, Any], seed: int, steps: int, pairs: int, test: int, *, show: bool
    ) -> None:
        self.loaded, self.dense = loaded, DualEncoder(loaded.model)
        self.ratios, self.seed, self.steps, self.show = ratios, seed, steps, show
        self.calibration, self.test = emoji_pairs("calibration", pairs, seed), emoji_pairs("test", test)
        # No more pairs than are seen, so that a demo of a few steps is quick.
        self.train = emoji_pairs("train", min(TRAINING_PAIRS, BATCH * steps), seed)
        self.teacher = TeacherCache.of(self.dense, self.train)
        self.scores: ScoreTable | None = None

    def row(self, encoder: DualEncoder, criterion: str, stage: str, work: Callable[[], object] | None = None) -> Row:
        """Does some work on the encoder, and evaluates it."""
        began = time.perf_counter()
        if work is not None:
            work()
        seconds = round(time.perf_counter() - began, 2)
        model = self.loaded._replace(model=encoder.model)
        found = evaluate(
            model, self.test, label="tiny", criterion=criterion, stage=stage, ks=(1, 5), batch_size=250, progress=False
        )
        return found | {"seconds": seconds}

    def rows(self) -> Iterator[Row]:
        """All rows of the table, those of one model after another."""
        yield self.row(self.dense, "", "dense")
        yield self.tuned(DualEncoder(copy.deepcopy(self.loaded.model)), "")
        for criterion in CRITERIA:
            encoder = DualEncoder(copy.deepcopy(self.loaded.model))
            yield self.row(encoder, criterion, "removed", partial(self.remove, encoder, criterion))
            some = Pairs(self.train.images[:RECONSTRUCTION_PAIRS], self.train.tokens[:RECONSTRUCTION_PAIRS])
            work = partial(reconstruct, encoder, self.dense, some, progress=self.show)
            yield self.row(encoder, criterion, "reconstructed", work)
            yield self.tuned(encoder, criterion)

    def remove(self, encoder: DualEncoder, criterion: str) -> None:
        """Mutates the encoder's model: removes units by a criterion."""
        importance = CRITERIA[criterion](encoder, self.calibration, self.show)
        if isinstance(importance, MoPEImportance):
            self.scores = importance.table  # of the model as it is before it is pruned
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)  # Torch-Pruning's random importance draws from the global stream
            prune(encoder, importance, global_pruning=True, **self.ratios)

    def tuned(self, encoder: DualEncoder, criterion: str) -> Row:
        """Mutates the encoder's model: distils it from the dense one."""
        work = partial(
            distill,
            encoder,
            self.train,
            teacher=self.teacher,
            steps=self.steps,
            batch_size=min(BATCH, self.train.num_images),
            learning_rate=5e-4,
            seed=self.seed,
            progress=self.show,
        )
        return self.row(encoder, criterion, "fine-tuned", work)


def run_demo(
    *,
    seed: int = 0,
    head_ratio: float = 0.3,
    ffn_ratio: float = 0.5,
    steps: int = 30,
    pairs: int = 1000,
    test_pairs: int = 3000,
    progress: bool = True,
) -> DemoResult:
    """Prunes copies of the tiny CLIP by each criterion to the same counts, reconstructs and distils them alike."""
    # The same arguments give the same rows, but for the seconds. Units are chosen on the calibration split, models
    # reconstructed and trained on the training split, and recall is of the test split, which does not depend on
    # ``seed``.
    if steps < 1:
        raise ValueError(f"steps must be at least 1; found {steps}.")
    loaded = load_model("tiny")
    dense, ratios = DualEncoder(loaded.model), dict[str, Any](head_ratio=head_ratio, ffn_ratio=ffn_ratio)
    before, removed = dense.counts(), dense.request(global_pruning=True, **ratios).asked
    demo = _Demo(loaded, ratios, seed, steps, pairs, test_pairs, show=progress)
    total = 2 + 3 * len(CRITERIA)
    rows = list(tqdm(demo.rows(), "rows", total, unit="row", disable=not progress, leave=False))
    if demo.scores is None:
        raise RuntimeError(f"CRITERIA must include MoPE, whose scores the demo shows; found {list(LABELS)}.")
    embedding = loaded.model.get_submodule("token_embedding")
    return DemoResult(rows, demo.scores, before, removed, sum(p.numel() for p in embedding.parameters()))


def rich_table(rows: Sequence[Mapping[str, Any]], *, title: str = "") -> Table:
    """The rows as one table; a criterion is named at its first row."""
    table = Table(title=title, title_justify="left")
    for heading in ("criterion", "stage"):
        table.add_column(heading, no_wrap=True)
    for heading in ("params", "MMACs", "i→t R@1", "R@5", "t→i R@1", "R@5", "seconds"):
        table.add_column(heading, justify="right", no_wrap=True)
    names = [row["criterion"] or "dense" for row in rows]
    for place, (row, name) in enumerate(zip(rows, names, strict=True)):
        table.add_row(
            "" if place and names[place - 1] == name else LABELS.get(name, name),
            row["stage"],
            f"{row['parameters'] / 1e6:.2f} M",
            f"{row['multiply_adds'] / 1e6:.1f}",
            *(f"{row[key]:.1f}" for key in ("i2t_r1", "i2t_r5", "t2i_r1", "t2i_r5")),
            "" if row["stage"] == "dense" else f"{row['seconds']:.1f}",
            style="bold" if name == "mope" else None,
            end_section=names[place + 1 : place + 2] != [name],
        )
    return table
