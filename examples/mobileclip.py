"""Prunes MobileCLIP, whose image tower is of convolutions: each tower by a budget of its own, then on to the phone.

python examples/mobileclip.py --online --pairs pairs.csv --output runs/mobileclip
python examples/mobileclip.py --offline
"""

import offline
import shared

import torch_pruning_mope as mope


def main() -> None:
    """Score, plan, prune, train, evaluate, save, export."""
    run = shared.set_up(__doc__, "MobileCLIP-S2@datacompdr", offline.mobileclip)
    shared.show(mope.evaluate(run.loaded, run.test, stage="dense"))
    encoder = mope.DualEncoder(run.loaded.model)
    print(encoder.counts())

    # Of the image tower neurons go, and the heads of its last stage; what its convolutions pass on to each other stays.
    table = mope.score(encoder, run.calibration, metric="contrastive_loss", groups=run.groups)
    plan = mope.make_plan(encoder, table, parameters={"image": "80%", "text": "60%"})
    print(plan)
    plan.apply(encoder)
    shared.show(mope.evaluate(run.loaded, run.test, stage="pruned"))

    mope.distill(
        encoder, run.train, steps=run.steps, path=run.output / "training"
    )  # without a teacher: the contrastive loss
    shared.show(mope.evaluate(run.loaded, run.test, stage="distilled"))

    encoder.save_pretrained(run.output / "distilled", base=run.name)
    files = mope.export(encoder, run.output / "program", format="torch")  # what ExecuTorch takes; "onnx" is another
    print(f"saved {run.output / 'distilled'} and {', '.join(file.name for file in files)}")


if __name__ == "__main__":
    main()
