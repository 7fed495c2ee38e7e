"""The paper's two stages as recipes: prune width, then depth, and distil; at once or a little at a time.

Each step leaves its result in the run's folder and is not done again: the same call on the same model goes on where it
stopped, to the same bits on a CPU. A run's folder holds:

    stage.json          what was asked for; another call's is refused
    steps.log           what was done, and what was found done, with the time
    training.jsonl      a line per training step, `training` naming the folder of its checkpoints
    training-dense/     checkpoints of the model before it is pruned, where it is fine-tuned first
    teacher/            what the whole model makes of the training pairs, where that is kept
    width.json          scores of heads and neuron groups: a joint path
    width-plan.json     the plan of those that go
    training-width/     checkpoints of the distillation that follows, in the fine-tuning stage
    depth.json          scores of layers: a greedy path
    depth-plan.json     the plan of those that go
    training/           checkpoints of the distillation at the end; `training-depth/` in the fine-tuning stage

With several rounds, all but the first five are in folders `round-1`, `round-2`, … of their own.
"""

from ._stage import finetune_stage, pretrain_stage, run_stage

__all__ = ["finetune_stage", "pretrain_stage", "run_stage"]
