"""Halves OpenAI's CLIP: heads, neurons and layers of both towers by budget, then distillation from the whole model.

python examples/openai_clip.py --online --pairs captions_train2017.json --root train2017 --output runs/clip
python examples/openai_clip.py --offline
"""

import copy

import offline
import shared

import torch_pruning_mope as mope


def main() -> None:
    """Score, plan, prune, distil, evaluate, save, load."""
    run = shared.set_up(__doc__, "ViT-B-32@openai", offline.openai_clip)
    shared.show(mope.evaluate(run.loaded, run.test, stage="dense"))
    teacher = mope.DualEncoder(copy.deepcopy(run.loaded.model))
    encoder = mope.DualEncoder(run.loaded.model)

    # One order of all heads and neuron groups, each scored with those before it gone: it serves every budget.
    table = mope.score(
        encoder,
        run.calibration,
        metric="contrastive_loss",
        interaction="joint",
        groups=run.groups,
        path=run.output / "path.json",  # a run that stops goes on from here
    )
    plan = mope.make_plan(encoder, table, parameters="50%")
    print(plan)
    plan.apply(encoder)
    shared.show(mope.evaluate(run.loaded, run.test, stage="pruned"))

    mope.distill(encoder, run.train, teacher=teacher, steps=run.steps, path=run.output / "training")
    row = mope.evaluate(run.loaded, run.test, stage="distilled")
    shared.show(row)

    folder = run.output / "distilled"
    encoder.save_pretrained(folder, base=run.name, metrics={key: row[key] for key in ("i2t_r1", "t2i_r1")})
    again = mope.evaluate(mope.load(folder), run.test, stage="distilled")
    print(f"saved {folder}; loaded again it is the same: {again['i2t_r1'] == row['i2t_r1']}")


if __name__ == "__main__":
    main()
