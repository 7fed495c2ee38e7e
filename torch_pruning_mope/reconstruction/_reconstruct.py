"""Closed-form reconstruction: the layers that are left take over from those that went."""

import copy
import time
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from .._fingerprint import fingerprint
from .._state import evaluation_mode
from ..data import Pairs
from ..encoder import EncoderCore, TowerName
from ..scoring import Ranks, check_common
from ..scoring._memory import resolve_memory, tokens_at_once
from ..scoring._walk import Walk
from ._fit import LayerReport, ReconstructionReport, fit_group
from ._layers import Refit, check_models, groups_of
from ._projection import find_fold, fit_projection
from ._source import Chunk, PairsLike, Source
from ._track import Reach, Track, Tracks
from ._watch import find_site, walk_of


def reconstruct(
    encoder: EncoderCore,
    dense: EncoderCore,
    pairs: PairsLike,
    *,
    ridge: float | None = None,
    towers: Collection[str] = ("image", "text"),
    projection: bool = True,
    inputs: bool = True,
    held_out: float = 0.1,
    batch_size: int | None = None,
    memory: int | str | None = None,
    progress: bool = True,
) -> ReconstructionReport:
    """Mutates ``encoder``: refits the weights that are left so that its residual streams are again those of ``dense``.

    For each attention and MLP in the order in which they run, the layer back to the residual stream is refitted by ridge
    regression: from the layer's input in the pruned model, onto the dense stream after it less the pruned model's stream before
    it, over the tokens that can reach the embedding. The pruned model's stream goes on through the refitted layer, so that
    errors do not add up and sub-layers that were removed whole are made up for by the next. At the end the joint projection is
    refitted onto the dense embeddings. No labels are used; images and captions need not match. Where a layer's output joins no
    stream that can be seen (before an activation, or through a norm), its own dense output is the target. CoCa's decoder is
    left alone.

    GRAIL (arXiv 2602.23795) and CORP (arXiv 2602.05243) refit onto a layer's own output; the stream as a target also makes up
    for the errors of earlier layers.

    Under ``torchrun`` each process takes its share of the pairs, of which all must hold the same, and all end with the same
    weights.

    Args:
        encoder: The pruned model, by whatever means.
        dense: The model before pruning; left as it is.
        pairs: :class:`torch_pruning_mope.Pairs`, or batches of ``(images, tokens)``. Batches that can be iterated again are
            read again where ``memory`` is short, and must then be the same; those of an iterator are held in memory.
        ridge: Weight of the penalty on the change of the weights, relative to the mean square of the layer's inputs; None for
            the best of each layer between 1e-7 and 1, by cross-validation over two halves of the fitted pairs.
        towers: Towers to refit.
        projection: Refit the joint projection.
        inputs: Refit q, k, v and the first layers of MLPs too, onto the dense model's pre-activations.
        held_out: Share of the pairs that is never fitted on. A layer whose error on them would become larger is left as it was.
        batch_size: Inputs run at once; None for what suits the device.
        memory: Memory for streams, besides the models and the pairs: bytes, a text like ``"4GiB"``, or None for half of what
            is free. With less, more is computed again; the weights are the same.
        progress: Show a progress bar.

    Returns:
        Per layer the relative error of the stream before and after, on held-out tokens.

    Raises:
        ValueError: If an argument is out of range, the models share weights, or the pairs do not fit the model. As with every
            other error, the encoder is left as it was.
        WrongModelError: If ``encoder`` cannot have been pruned from ``dense``.
        NonFiniteError: If a hidden state is NaN or infinite.
    """
    _check(pairs, ridge, towers, held_out, batch_size)
    encoder.check_has_weights()
    dense.check_has_weights()
    check_models(encoder, dense)
    began = time.perf_counter()
    budget = resolve_memory(memory, encoder.device)
    source = Source(pairs, held_out, budget, dense)
    ranks = Ranks()
    try:
        ranks.check_same(encoder=fingerprint(encoder.model), dense=fingerprint(dense.model), pairs=source.fingerprint())
        layers: list[LayerReport] = []
        alone: dict[str, str] = {"decoder": "it has no part in the embeddings"} if "decoder" in encoder.towers else {}
        counts: dict[str, int] = {}
        with _running(encoder, dense), _unless_refused(encoder):
            for name in (name for name in ("image", "text") if name in towers):
                work = _TowerFit(encoder, dense, name, source, ranks, batch_size, budget, alone, inputs=inputs)
                layers += work.refit(ridge, show=progress and ranks.rank == 0)
                if projection:
                    layers += work.refit_projection(ridge, alone)
                counts[name] = work.tracks.inputs
        return ReconstructionReport(
            layers=tuple(layers), left_alone=alone, inputs=counts, seconds=time.perf_counter() - began,
            settings={"ridge": ridge, "projection": projection, "inputs": inputs, "held_out": held_out},
        )  # fmt: skip
    finally:
        ranks.close()


class _TowerFit:
    """One tower's reconstruction."""

    def __init__(
        self, encoder: EncoderCore, dense: EncoderCore, tower: TowerName, source: Source, ranks: Ranks,
        batch_size: int | None, memory: int, alone: dict[str, str], *, inputs: bool,
    ) -> None:  # fmt: skip
        self._student, self._dense, self._ranks = walk_of(encoder, tower), walk_of(dense, tower), ranks
        self._groups = groups_of(self._student, self._dense, alone, inputs=inputs)
        refits = [refit for group in self._groups for refit in group]
        self.example = source.first(tower, self._dense.view)
        _find_sites(refits, dense, tower, self.example)
        _retarget(self._groups, self._student, self._dense)
        mates: dict[int, list[Refit]] = {}
        for refit in refits:
            mates.setdefault(refit.dense_step, []).append(refit)

        def start(chunk: Chunk) -> Track:
            return Track(chunk, self._student, self._dense, mates)

        tokens = self._dense.tokens(self._dense.stem(self.example))
        size = batch_size or max(1, tokens_at_once(dense.device) // max(1, tokens))
        self.tracks = Tracks(source, self._student, size, memory, ranks, start, Reach(self._student, refits))

    def refit(self, ridge: float | None, *, show: bool) -> Iterator[LayerReport]:
        """Mutates the student, layer by layer."""
        title = f"reconstruct {self._student.tower}"
        for group in tqdm(self._groups, title, unit="layer", disable=not show, delay=2, leave=False):
            yield from fit_group(group, self.tracks, self._ranks, ridge)

    def refit_projection(self, ridge: float | None, alone: dict[str, str]) -> Iterator[LayerReport]:
        """Mutates the student's last layer, or notes that there is none."""
        fold = find_fold(self._student, self.example)
        if fold is None:
            alone[f"{self._student.tower} projection"] = "no last linear layer makes the embeddings"
        else:
            yield fit_projection(self._student, self.tracks, fold, self._ranks, ridge)


def _find_sites(refits: Sequence[Refit], dense: EncoderCore, tower: TowerName, example: Tensor) -> None:
    """Looks for the stream after each output layer, in single precision at least."""
    exact = dense
    if next(dense.model.parameters()).dtype not in {torch.float32, torch.float64}:
        exact = EncoderCore(copy.deepcopy(dense.model).float())
        exact.model.eval()
        example = example.float() if example.is_floating_point() else example
    walk, names = walk_of(exact, tower), {module: name for name, module in dense.model.named_modules()}
    state, at = walk.stem(example), 0
    for refit in sorted(refits, key=lambda refit: refit.dense_step):
        if "." in refit.part:  # an input projection: its own output is the target
            continue
        while at < refit.dense_step:
            state, at = walk.step(at, state), at + 1
        layer, owner = (exact.model.get_submodule(names[module]) for module in (refit.original, refit.owner))
        refit.site = find_site(walk, at, state, layer, owner)


def _retarget(groups: Sequence[Sequence[Refit]], student: Walk, dense: Walk) -> None:
    """The last layer that writes to the stream makes up for the last blocks of the dense model, where they have gone."""
    rows = [number for number, block in enumerate(dense.blocks) if block.siblings is not None]
    streams = [
        group[0]
        for group in groups
        if student.blocks[group[0].block].siblings is not None and group[0].site is not None
    ]
    if not rows or not streams or streams[-1].site is None or streams[-1].site.module is not None:
        return
    last = dense.step_of(rows[-1], "head" if dense.blocks[rows[-1]].feed_forward is None else "neurons")
    if last > streams[-1].dense_step:
        streams[-1].dense_step = last


@contextmanager
def _running(*encoders: EncoderCore) -> Iterator[None]:
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.no_grad())
        for encoder in encoders:
            stack.enter_context(evaluation_mode(encoder.model))
        yield


@contextmanager
def _unless_refused(encoder: EncoderCore) -> Iterator[None]:
    """Mutates the model inside; on any error its weights are what they were."""
    before = {parameter: parameter.detach().clone() for parameter in encoder.model.parameters()}
    try:
        yield
    except BaseException:
        with torch.no_grad():
            for parameter, value in before.items():
                parameter.copy_(value)
        raise


def _check(pairs: Any, ridge: float | None, towers: Any, held_out: float, batch_size: int | None) -> None:
    if not isinstance(pairs, Pairs | Iterable):
        raise TypeError(
            f"pairs must be Pairs or batches of (images, tokens); found {type(pairs).__name__}. Pass a list."
        )
    if ridge is not None and not 0 < ridge < float("inf"):
        raise ValueError(f"ridge must be a positive number, or None; found {ridge}. 1e-4 is usual.")
    check_common(towers, batch_size)
    if not 0 < held_out <= 0.5:
        raise ValueError(f"held_out must be above 0 and at most 0.5; found {held_out}. 0.1 is the default.")
