"""``python -m torch_pruning_mope``, which ``torchrun -m`` can launch, is the command ``mope``."""

from .cli import app

app(prog_name="mope")
