"""The demo itself: one model, several criteria, the same counts, the same training, one test split."""

import copy
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from tqdm import tqdm

from ..data import Pairs, emoji_pairs, load_tiny_clip
from ..dual_encoder import DualEncoder
from ..evaluation import multiply_adds, parameters
from ..importance import MoPEImportance
from ..pruning import Counts, prune
from ..scoring import ScoreTable
from ._criteria import CRITERIA
from ._finetune import fine_tune
from ._measure import recalls
from ._row import Row, Stage


@dataclass(frozen=True)
class DemoResult:
    """What the demo found.

    Attributes:
        rows: The table, dense first; each pruned row is followed by its fine-tuned one.
        scores: MoPE of the dense model's heads and neuron groups.
        before: Units of the dense model.
        removed: Units that each criterion removed.
        embedding_params: Parameters of the token embedding, which are in every row's count and never pruned.
    """

    rows: list[Row]
    scores: ScoreTable
    before: Counts
    removed: Counts
    embedding_params: int


@dataclass
class _Demo:
    """The settings that all rows share."""

    seed: int
    steps: int
    ratios: dict[str, Any]
    calibration: Pairs
    test: Pairs
    progress: bool
    scores: ScoreTable | None = None

    def row(self, encoder: DualEncoder, criterion: str, stage: Stage, seconds: float) -> Row:
        found = recalls(encoder, self.test)
        return Row(
            criterion,
            stage,
            parameters(encoder),
            multiply_adds(encoder),
            *found,
            seconds=round(seconds, 2),
        )

    def pruned(self, dense: DualEncoder, criterion: str) -> Iterator[Row]:
        """A copy of the dense model, pruned and then trained."""
        encoder = DualEncoder(copy.deepcopy(dense.model))
        began = time.perf_counter()
        importance = CRITERIA[criterion].importance(encoder, self.calibration, self.progress)
        if isinstance(importance, MoPEImportance):
            self.scores = importance.table  # of the model as it is before it is pruned
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)  # Torch-Pruning's random importance draws from the global stream
            prune(encoder, importance, global_pruning=True, **self.ratios)
        yield self.row(encoder, criterion, "pruned", time.perf_counter() - began)
        yield self.fine_tuned(encoder, criterion)

    def fine_tuned(self, encoder: DualEncoder, criterion: str) -> Row:
        """Mutates the encoder's model: trains it."""
        began = time.perf_counter()
        label = CRITERIA[criterion].label if criterion in CRITERIA else criterion
        fine_tune(encoder, steps=self.steps, seed=self.seed, label=label, progress=self.progress)
        return self.row(encoder, criterion, "fine-tuned", time.perf_counter() - began)

    def rows(self, dense: DualEncoder) -> Iterator[Row]:
        """All rows of the table."""
        yield self.row(dense, "dense", "dense", 0.0)
        for criterion in CRITERIA:
            yield from self.pruned(dense, criterion)
        yield self.fine_tuned(DualEncoder(copy.deepcopy(dense.model)), "dense")


def run_demo(
    *,
    seed: int = 0,
    head_ratio: float = 0.3,
    ffn_ratio: float = 0.5,
    steps: int = 60,
    pairs: int = 1000,
    test_pairs: int = 3000,
    progress: bool = True,
) -> DemoResult:
    """Prunes copies of the tiny CLIP with each criterion, globally and at the same counts, and fine-tunes each alike.

    The same arguments give the same rows, but for the seconds. Units are chosen on the calibration split, models trained on
    the training split, and recall is of the test split, which does not depend on ``seed``.

    Args:
        seed: Of the calibration pairs, the training batches and the random criterion.
        head_ratio: Share of the heads to remove.
        ffn_ratio: Share of the FFN neurons to remove.
        steps: Fine-tuning steps, of 128 pairs each.
        pairs: Calibration pairs.
        test_pairs: Test pairs, which is the size of the gallery.
        progress: Whether to show progress bars.

    Returns:
        The table, and the scores behind it.

    Raises:
        ValueError: If a number is out of its range; found out before any work is done.
        RuntimeError: If MoPE was not among the criteria.
    """
    if steps < 1:
        raise ValueError(f"steps must be at least 1; found {steps}.")
    dense = DualEncoder(load_tiny_clip())
    ratios: dict[str, Any] = {"head_ratio": head_ratio, "ffn_ratio": ffn_ratio}
    removed = dense.request(global_pruning=True, **ratios).asked
    demo = _Demo(
        seed, steps, ratios, emoji_pairs("calibration", pairs, seed), emoji_pairs("test", test_pairs), progress
    )
    total = 2 + 2 * len(CRITERIA)
    rows = list(tqdm(demo.rows(dense), "rows", total, unit="row", disable=not progress, leave=False))
    if demo.scores is None:
        raise RuntimeError("CRITERIA must include MoPE, whose scores the demo shows.")
    return DemoResult(
        sorted(rows, key=lambda row: row.criterion != "dense"),
        demo.scores,
        dense.counts(),
        removed,
        dense.model.token_embedding.weight.numel(),
    )
