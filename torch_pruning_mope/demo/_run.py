"""The demo itself: one model, several criteria, the same counts, the same training, one test split."""

import copy
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from tqdm import tqdm

from ..checkpoint import load_model
from ..data import Pairs, emoji_pairs
from ..distillation import TeacherCache, distill
from ..dual_encoder import DualEncoder
from ..evaluation import evaluate
from ..importance import MoPEImportance
from ..loading import LoadedModel
from ..pruning import Counts
from ..pruning._prune import prune
from ..reconstruction import reconstruct
from ..scoring import ScoreTable
from ._criteria import CRITERIA, LABELS

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
