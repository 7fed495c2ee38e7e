"""``mope models``: what can be pruned."""

from dataclasses import asdict
from typing import Annotated

import typer

from ._command import Call, command


@command("models", is_of_run=False)
def models(
    call: Call,
    names: Annotated[
        list[str] | None, typer.Argument(help="Configurations of open_clip to wrap; all by default.")
    ] = None,
) -> None:
    """Lists families of models that work, as measured; given names or --json, wraps configurations of open_clip to see."""
    from ..evaluation import check_models, families_table

    if call.given["json"] is None and not names:
        call.show(families_table())
        return
    checks = []
    for check in check_models(names or None):
        checks.append(check)
        call.say(f"{check.name}: {'wraps' if check.wraps else 'refused'}{': ' * bool(check.reason)}{check.reason}")
    call.say(f"{sum(check.wraps for check in checks)} of {len(checks)} wrap.")
    call.answer([asdict(check) for check in checks])
