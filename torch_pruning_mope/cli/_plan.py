"""``mope plan``: from scores and a budget to what goes."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from ._command import Call, OptionalRun, command
from ._options import Budgets, ModelInstead
from ._source import Source

if TYPE_CHECKING:
    from ..dual_encoder import DualEncoder


@command("plan")
def plan(call: Call, run: OptionalRun = None, model: ModelInstead = None, *, budgets: Budgets) -> None:
    """Chooses what to remove for a budget, and says what would be left. Without a budget: what budgets can be met."""
    from ..dual_encoder import DualEncoder
    from ..planning import make_plan
    from ._started import StartedRun, started

    if (run is None) == (model is None):
        raise ValueError("one of RUN and --model must be given; found " + ("none." if run is None else "both."))
    amounts, rules = budgets.amounts(), budgets.rules()
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
        made = make_plan(DualEncoder(begun.load().model), begun.scores(), **amounts, **rules)
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
