"""Prunes SigLIP 2 of transformers through Torch-Pruning, and trains it on with SigLIP's own loss.

python examples/siglip2.py --online --pairs "shards/{000..099}.tar" --calibration 0.02 --test 0.02 --output runs/siglip2
python examples/siglip2.py --offline
"""

import copy

import offline
import shared

import torch_pruning_mope as mope


def main() -> None:
    """Score, prune, distil, evaluate, save, load."""
    run = shared.set_up(__doc__, "hf:google/siglip2-base-patch16-224", offline.siglip2)
    shared.show(mope.evaluate(run.loaded, run.test, stage="dense"))
    teacher = mope.DualEncoder(copy.deepcopy(run.loaded.model))
    encoder = mope.DualEncoder(run.loaded.model)

    importance = mope.MoPEImportance(encoder, run.calibration, metric="contrastive_loss", groups=run.groups)
    removed = mope.prune(encoder, importance, head_ratio=0.25, ffn_ratio=0.5, global_pruning=True)
    print(f"removed {removed.heads} heads and {removed.neurons} neurons")
    shared.show(mope.evaluate(run.loaded, run.test, stage="pruned"))

    # SigLIP's loss of each pair by itself, and the teacher's similarities and embeddings.
    loss = mope.DistillationLoss(sigmoid=True)
    mope.distill(encoder, run.train, teacher=teacher, loss=loss, steps=run.steps, path=run.output / "training")
    row = mope.evaluate(run.loaded, run.test, stage="distilled")
    shared.show(row)

    folder = run.output / "distilled"
    encoder.save_pretrained(folder, base=run.name)
    again = mope.evaluate(mope.load(folder), run.test, stage="distilled")
    print(f"saved {folder}; loaded again it is the same: {again['i2t_r1'] == row['i2t_r1']}")


if __name__ == "__main__":
    main()
