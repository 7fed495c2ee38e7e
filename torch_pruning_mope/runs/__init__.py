"""Runs in a folder: compression without training, and the paper's two stages: prune width, then depth, and distil.

What is done is not done again: the same call on the same model goes on where it stopped, to the same bits on a CPU. A folder
holds, as far as the run has come:

    run.json            what the run is: digests of weights and pairs, and a stage's arguments; another run is refused
    config.yaml         settings of each command that was accepted; paths near the folder are relative to it
    scores.json         the score table
    plan.json           what goes
    reconstruction.json errors of each layer before and after it was refitted
    stage-1/, …         scores, plan and errors of each stage of a compression
    pruned/             checkpoint of the pruned model, reconstructed unless that was turned off
    training/           checkpoints of the distillation
    training.jsonl      a line per training step
    distilled/          checkpoint of the distilled model
    evaluation.json     a row per model
    .lock               process that holds the folder

A stage has, besides:

    steps.log           what was done, and what was found done, with the time
    training-dense/     checkpoints of the model before it is pruned, where it is fine-tuned first
    teacher/            what the dense model makes of the training pairs, where that is kept
    width.json          scores of heads and neuron groups: a joint path
    width-plan.json     the plan of those that go
    training-width/     checkpoints of the distillation that follows, in the fine-tuning stage
    depth.json          scores of layers: a greedy path
    depth-plan.json     the plan of those that go
    training-depth/     checkpoints of the distillation at the end, in the fine-tuning stage
"""

from ._compress import compress
from ._folder import SETTINGS, TRAINING, RunFolder
from ._settings import NEVER_IN_FILES, read_settings, shown
from ._stages import finetune_stage, pretrain_stage, run_stage
from ._training_log import TrainingLog, read_training

__all__ = [
    "NEVER_IN_FILES",
    "SETTINGS",
    "TRAINING",
    "RunFolder",
    "TrainingLog",
    "compress",
    "finetune_stage",
    "pretrain_stage",
    "read_settings",
    "read_training",
    "run_stage",
    "shown",
]
