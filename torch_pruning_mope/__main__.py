"""The command ``mope``, also as ``python -m torch_pruning_mope``, which ``torchrun -m`` can launch."""

import sys


def main() -> None:
    """Runs the command; an interruption is one line even before there is a command."""
    try:
        from .cli import app

        app(prog_name="mope")
    except KeyboardInterrupt:
        sys.stderr.write("Interrupted: the same command goes on from here.\n")
        sys.exit(130)


if __name__ == "__main__":
    main()
