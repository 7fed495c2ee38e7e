"""``mope prune``: from a plan to a smaller model."""

from dataclasses import asdict

from ._command import Call, RunArgument, command


@command("prune")
def prune(call: Call, run: RunArgument) -> None:
    """Removes what the plan says, exactly, and saves the smaller model."""
    from ..dual_encoder import DualEncoder
    from ..planning import Plan
    from ._started import StartedRun

    folder = call.folder(run)
    with folder.held():
        begun = StartedRun(folder)
        made = Plan.load(begun.needs("plan.json", "plan"))
        encoder = DualEncoder(begun.load().model)
        before = encoder.counts()
        made.apply(encoder)
        after = encoder.counts()
        encoder.save_pretrained(run / "pruned", base=begun.source.model)
        folder.record()
    call.say(
        f"{after.heads} of {before.heads} heads and {after.neurons} of {before.neurons} neurons left",
        f"model in {run / 'pruned'}",
    )
    call.answer({"before": asdict(before), "after": asdict(after), "model": str(run / "pruned")})
