"""MoPE: drop of a zero-shot metric when a unit is removed (Lin et al., CVPR 2024, arXiv 2403.07839)."""

import hashlib
import math
from collections.abc import Callable, Collection, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
import torch_pruning as tp
from torch import Tensor

from .._fingerprint import fingerprint
from ..data import Pairs
from ..encoder import EncoderCore, TowerName
from ..metrics import Metric, MetricLike, resolve_metric
from ..towers import KINDS, Unit
from ._ablate import Ablator
from ._engine import PlainEngine, PrefixEngine
from ._families import Interaction, Progress, families, scores_of
from ._journal import Journal, complete_table, kept_key
from ._memory import resolve_memory
from ._meter import Meter, PairsLike
from ._ranks import Ranks
from ._refit import Refits
from ._rewire import Rewiring, neuron_orders
from ._table import ScoreTable
from ._units import Orders, check_common, enumerate_units

Autocast = Literal["bfloat16", "float16"]


def score(
    encoder: EncoderCore,
    pairs: PairsLike,
    *,
    metric: MetricLike = "contrastive_loss",
    kinds: Collection[str] = ("head", "neurons"),
    groups: int = 16,
    interaction: Interaction = "nested",
    rewire: Rewiring = "taylor",
    reconstruct: bool = False,
    towers: Collection[str] = ("image", "text"),
    engine: Literal["prefix", "plain"] = "prefix",
    batch_size: int | None = None,
    memory: int | str | None = None,
    autocast: Autocast | None = None,
    until: float | None = None,
    path: str | Path | None = None,
    on_start: Callable[[], object] = lambda: None,
    progress: bool = True,
) -> ScoreTable:
    """Scores the units of a dual encoder, which is left exactly as it was.

    Under ``torchrun``, units are shared out over the processes, and each returns the same table. All must make the same call
    on the same weights and pairs; encoders that are all on the first GPU are scored on one GPU each.

    Args:
        encoder: The dual encoder.
        pairs: Calibration pairs, or any iterable of ``(images, tokens)`` batches. Never the pairs that results are
            reported on.
        metric: Z, higher is better; see :func:`torch_pruning_mope.metrics.resolve_metric`. The paper's is ``recall_mean``.
        kinds: Kinds of units: ``head``, ``neurons``, ``block``; or a block's whole ``attention`` or ``mlp``.
        groups: Neuron groups per MLP (the paper gives no number; DynaBERT's rewiring uses such groups).
        interaction: ``single``: each unit is removed alone, as in the paper. ``nested`` (ours): an MLP's lowest neuron
            groups go together, one more at a time, and a group's score is the isotonic increment. ``greedy`` (ours): besides,
            heads and blocks go one after another over both towers, the least missed first, re-scored as others have gone.
            ``joint`` (ours): all kinds go in one order over both towers, the least loss per freed parameter first, an
            MLP's groups lowest first; the table's rows are in that order.
        rewire: Order of an MLP's neurons before they are grouped: ``taylor``, ``none``, ``obs`` (the error that each leaves
            after the others are refitted, ``‖W_j‖² / [A⁻¹]_jj``), or a Torch-Pruning importance.
        reconstruct: Score units as they are missed once what is left of their attention or MLP has been refitted by least
            squares (ours; see ``scoring._refit`` for the update), as :func:`torch_pruning_mope.reconstruct` does after
            pruning. A unit that the others can replace scores nothing, whatever its size. On paths, what has gone stays
            refitted. A block leaves nothing to refit.
        towers: Towers to score.
        engine: ``prefix`` reuses what an ablation cannot change; ``plain`` evaluates the whole tower each time.
        batch_size: Sequences run at once; None for what suits the device, or fewer if memory is short.
        memory: Memory of the prefix engine besides the model and the pairs: bytes, a text like ``"4GiB"``, or None for
            half of what is free. With less, more is computed again; the scores are the same.
        autocast: Compute in this type under ``torch.autocast``; None for the model's own.
        until: Share of the parameters of the towers' blocks at which a joint path stops; None for all units. The table then
            holds what went, and serves budgets up to there: what is left is best scored again once that is removed.
        path: File of the complete table. Until then, measurements are written beside it as they come, and the same call
            resumes from them after a crash, in any number of processes. A complete table is read, not made. Callable metrics
            and rewirings then need a ``key`` attribute, a text that changes with what they compute.
        on_start: Called once nothing can be refused any more: arguments are valid, and ``path`` is free or of this call.
        progress: Show a progress bar.

    Returns:
        The score table.

    Raises:
        ValueError: If an argument is not one of the above, the weights are on the ``meta`` device, the captions do not fit
            the model, ``path`` holds another table, a callable has no key, or ranks make different calls.
        WrongModelError: If ``path`` holds measurements of something else.
        MetricError: If the metric cannot be used.
        NonFiniteError: If an embedding is NaN or infinite.
    """
    _check(kinds, groups, interaction, towers, engine, batch_size, autocast, until)
    encoder.check_has_weights()
    measure = resolve_metric(metric, float(torch.as_tensor(encoder.logit_scale).detach()))
    pairs = Pairs.coerce(pairs)
    encoder.text.check_inputs(pairs.tokens)
    encoder.image.check_inputs(pairs.images)
    target = None if path is None else Path(path)
    of = {
        "weights": fingerprint(encoder.model),
        "architecture": hashlib.sha256(repr(encoder.model).encode()).hexdigest()[:16],
        "pairs": pairs.fingerprint(),
        "metric": measure.name,
        "metric_key": kept_key("metric", measure, (Metric,), target),
        "engine": engine,
        "autocast": autocast,
        "reconstruct": reconstruct,
    }
    settings = {
        **{name: of[name] for name in ("architecture", "metric_key", "engine", "autocast", "reconstruct")},
        "kinds": sorted(kinds),
        "towers": sorted(towers),
        "groups": groups,
        "interaction": interaction,
        "rewire": rewire
        if isinstance(rewire, str)
        else kept_key("rewire", rewire, (tp.importance.Importance,), target),
        "until": until,
    }
    ranks, journal = Ranks(), None
    try:
        ranks.check_same(**of | settings, batch_size=batch_size, memory=memory, path=target is not None)
        # Rank 0 looks: on other machines, the path may be another's.
        known = None if target is None else ranks.from_first(partial(complete_table, target, of, settings))
        if known is not None:
            on_start()
            return known
        journal = Journal(target, of, ranks)
        own = ranks.placed(encoder)
        orders = _orders(own, pairs, rewire, str(settings["rewire"]), journal, ranks) if "neurons" in kinds else {}
        units = enumerate_units(own, kinds, orders, groups, towers)
        if not units:
            raise ValueError(
                f"the model has no units of these kinds; found none of {sorted(kinds)} in {sorted(towers)}. Layers can be "
                "scored where they stand in a list: a Block's siblings."
            )
        on_start()
        runner = _engine(own, pairs, units, settings, batch_size, memory)
        meter = Meter(runner, pairs, measure, own.device, journal=journal, ranks=ranks)
        table = _table(meter, own, pairs, units, of, settings, show=progress and ranks.rank == 0)
        if target is not None and ranks.rank == 0:
            table.save(target)
        ranks.gather(None)  # nobody's journal goes before the table is there
        journal.close(remove=ranks.rank == 0)
        return table
    finally:
        if journal is not None:
            journal.close(remove=False)
        ranks.close()


def _table(
    meter: Meter,
    encoder: EncoderCore,
    pairs: Pairs,
    units: Sequence[Unit],
    of: Any,
    settings: dict[str, Any],
    *,
    show: bool,
) -> ScoreTable:
    """Measures everything."""
    interaction, until = settings["interaction"], settings["until"]
    blocks = [layer.block.module for layer in encoder.layers if layer.tower in settings["towers"]]
    total = sum(parameter.numel() for block in blocks for parameter in block.parameters())
    most = None if until is None else math.ceil(until * total)
    queries: dict[TowerName, int] = {"image": pairs.num_images, "text": pairs.num_captions}
    layers = {name: len(tower.blocks) for name, tower in encoder.towers.items()}
    with closing(Progress(units, queries, layers, show=show)) as bar:
        measured = families(meter, encoder, units, interaction, most, bar)
        scores = [s for f in measured for s in scores_of(f, encoder, pairs.num_images, interaction == "joint")]
    settings = settings | {"evaluations": meter.evaluations, "images": pairs.num_images}
    return ScoreTable(tuple(scores), meter.dense, of["metric"], of["weights"], of["pairs"], settings)


def _engine(
    encoder: EncoderCore,
    pairs: Pairs,
    units: Sequence[Unit],
    settings: dict[str, Any],
    batch_size: int | None,
    memory: int | str | None,
) -> PrefixEngine | PlainEngine:
    dtype = None if settings["autocast"] is None else getattr(torch, settings["autocast"])
    path = settings["interaction"] in {"greedy", "joint"}
    room, refits = resolve_memory(memory, encoder.device), None
    if settings["reconstruct"]:
        inputs: dict[TowerName, Tensor] = {"image": pairs.images, "text": pairs.tokens}
        places = [(unit.tower, unit.layer, unit.part) for unit in units if unit.part != "block"]
        refits = Refits(encoder, inputs, places, batch_size=batch_size, memory=room // 2, whole=path)
        room -= refits.nbytes
    ablator = Ablator(encoder, refits)
    if settings["engine"] == "plain":
        return PlainEngine(encoder, batch_size=batch_size, dtype=dtype, ablator=ablator)
    return PrefixEngine(encoder, batch_size=batch_size, memory=room, dtype=dtype, keep=path, ablator=ablator)


def _orders(encoder: EncoderCore, pairs: Pairs, rewire: Rewiring, name: str, journal: Journal, ranks: Ranks) -> Orders:
    """The order of the neurons: the one that a resumed run began with, and the same on all ranks."""
    known = journal.orders(name)
    if known is None:
        known = ranks.first(neuron_orders(encoder, pairs, rewire, ranks))
        journal.add_orders(name, known)
    return known


def _check(
    kinds: Collection[str],
    groups: int,
    interaction: str,
    towers: Collection[str],
    engine: str,
    batch_size: int | None,
    autocast: str | None,
    until: float | None,
) -> None:
    if until is not None and (interaction != "joint" or not 0 < until <= 1):
        raise ValueError(
            f"until must be above 0 and at most 1, and is for interaction='joint'; found {until} for {interaction!r}."
        )
    if isinstance(kinds, str) or not kinds or set(kinds) - set(KINDS):
        raise ValueError(f"kinds must be some of {KINDS}; found {kinds!r}.")
    if interaction == "joint" and set(kinds) & {"attention", "mlp"}:
        raise ValueError(
            f"kinds must be of head, neurons and block on a joint path, which takes sub-layers apart; found {kinds!r}."
        )
    if groups < 1:
        raise ValueError(f"groups must be at least 1; found {groups}.")
    check_common(towers, batch_size)
    for name, value, known in (
        ("interaction", interaction, ("single", "nested", "greedy", "joint")),
        ("engine", engine, ("prefix", "plain")),
        ("autocast", autocast, (None, "bfloat16", "float16")),
    ):
        if value not in known:
            raise ValueError(f"{name} must be one of {known}; found {value!r}.")
