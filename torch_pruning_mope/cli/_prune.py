"""``mope plan``, ``mope prune`` and ``mope reconstruct``: from scores and a budget to a smaller model."""

from dataclasses import asdict, dataclass
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ._command import Call, OptionalRun, RunArgument, command
from ._options import (
    Budgets,
    ModelInstead,
    OtherData,
    Part,
    QuietOption,
    ReconstructOption,
    Refit,
    Source,
    budget_option,
)

if TYPE_CHECKING:
    from ..dual_encoder import DualEncoder


Timed = StrEnum("Timed", ["eager", "onnx", "int8"])


@command("plan")
def plan(
    call: Call,
    run: OptionalRun = None,
    model: ModelInstead = None,
    *,
    budgets: Budgets,
    timed: Annotated[
        Timed, budget_option("--timed-as", help="Form that --latency is of; onnx, int8: of exported files, in minutes.")
    ] = Timed.eager,
) -> None:
    """Chooses what to remove for a budget, and says what would be left. Without a budget: what budgets can be met."""
    from ..dual_encoder import DualEncoder
    from ..planning import make_plan
    from ._started import StartedRun, started

    if (run is None) == (model is None):
        raise ValueError("one of RUN and --model must be given; found " + ("none." if run is None else "both."))
    amounts, rules = budgets.amounts(), budgets.rules()
    if timed is not Timed.eager and (run is None or amounts["latency"] is None):
        raise ValueError(f"--timed-as {timed} must come with RUN and --latency; found one missing. Give both.")
    is_asked = any(amount is not None for amount in amounts.values())
    if run is None:
        _show_range(call, DualEncoder(Source(model=str(model)).load().model), amounts if is_asked else {}, rules)
        return
    if not is_asked:
        begun = StartedRun(call.folder(run))
        if (run / "scores.json").exists():
            rules["kinds"] = {entry.unit.kind for entry in begun.scores().scores}
        _show_range(call, DualEncoder(begun.load().model), {}, rules)
        return
    with started(call, run) as begun:
        loaded = begun.load()
        if timed is not Timed.eager:
            from ..deploy import shipped_latencies

            pairs = begun.parts(loaded).pairs(Part.calibration, 256) if timed is Timed.int8 else None
            rules["timer"] = partial(shipped_latencies, quantize="int8" if pairs else None, pairs=pairs)
        made = make_plan(DualEncoder(loaded.model), begun.scores(), **amounts, **rules)
        made.save(run / "plan.json")
    call.say(made, f"plan in {run / 'plan.json'}")
    call.answer(asdict(made))


def _show_range(call: Call, encoder: "DualEncoder", amounts: dict[str, Any], rules: dict[str, Any]) -> None:
    """Prints what budgets can be met; of some budgets, that they can, or raises."""
    from ..planning import plan_range

    found = plan_range(encoder, latency=True, **rules)
    call.say(found)
    call.answer(asdict(found))
    if amounts:
        found.check(**amounts)
        call.say("The budget can be met.")
    else:
        call.say("This is what budgets can ask for; give one: --parameters, --multiply-adds or --latency.")


RECONSTRUCTION = "reconstruction.json"


@dataclass(frozen=True)
class Reconstruction(Refit):
    part: Annotated[Part, typer.Option(help="Part of the run's pairs to refit on.")] = Part.calibration
    pairs: Annotated[
        int | None, typer.Option(help="Images of it at most; no labels are used.", show_default="those scored on")
    ] = None


@command("prune")
def prune(
    call: Call,
    run: RunArgument,
    reconstruction: Reconstruction,
    other: OtherData,
    reconstruct: ReconstructOption = True,
    quiet: QuietOption = False,
) -> None:
    """Removes what the plan says, exactly, refits the weights that are left, without training, and saves the smaller model."""
    _prune(call, run, other, reconstruction if reconstruct else None, progress=not quiet)


@command("reconstruct")
def reconstruct_command(
    call: Call, run: RunArgument, reconstruction: Reconstruction, other: OtherData, quiet: QuietOption = False
) -> None:
    """Prunes anew by the plan, and refits the weights that are left: on other pairs, or in another way, than mope prune."""
    _prune(call, run, other, reconstruction, progress=not quiet)


def _prune(call: Call, run: Path, other: OtherData, reconstruction: Reconstruction | None, *, progress: bool) -> None:
    from ..dual_encoder import DualEncoder
    from ..planning import Plan
    from ._started import started

    with started(call, run, other, progress=progress) as begun:
        made = Plan.load(begun.needs("plan.json", "plan"))
        encoder = DualEncoder(begun.load().model)
        before = encoder.counts()
        made.apply(encoder)
        after = encoder.counts()
        (run / RECONSTRUCTION).unlink(missing_ok=True)
        if reconstruction is not None:
            found = refit(begun, encoder, reconstruction, progress=progress)
            begun.folder.write(RECONSTRUCTION, found.to_json())
        encoder.save_pretrained(run / "pruned", base=begun.source.model)
    call.say(f"{after.heads} of {before.heads} heads and {after.neurons} of {before.neurons} neurons left")
    if reconstruction is not None:
        call.say(f"{len(found.layers)} layers refitted on {found.inputs.get('image', 0)} images without training")
    call.say(f"model in {run / 'pruned'}")
    call.answer({"before": asdict(before), "after": asdict(after), "model": str(run / "pruned")})


def refit(begun: Any, encoder: Any, how: Reconstruction, *, progress: bool) -> Any:
    """Mutates the encoder: refits it onto the run's dense model."""
    from ..dual_encoder import DualEncoder
    from ..reconstruction import reconstruct

    loaded = begun.load()
    parts, part = begun.chosen(loaded, how.part)
    pairs = parts.scored() if part is Part.calibration and not how.pairs else parts.pairs(part, how.pairs)
    dense = DualEncoder(loaded.model)
    return reconstruct(encoder, dense, pairs, ridge=how.ridge, inputs=how.inputs, progress=progress)
