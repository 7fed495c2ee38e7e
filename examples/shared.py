"""The command line, the data and the table that the examples have in common."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import offline

import torch_pruning_mope as mope


@dataclass
class Setting:
    """What a script works with.

    Attributes:
        loaded: The model, its preprocessing and its tokenizer.
        name: What `load_model` was given.
        calibration: Pairs to score on.
        train: Batches to train on.
        test: Pairs to evaluate on.
        output: Folder for the result.
        groups: Neuron groups per MLP.
        steps: Training steps.
    """

    loaded: mope.loading.LoadedModel
    name: str
    calibration: mope.Pairs
    train: Any
    test: mope.Pairs
    output: Path
    groups: int
    steps: int


def set_up(description: str | None, model: str, stand_in: Callable[[Path], str]) -> Setting:
    """Reads the command line, the model and the data.

    Args:
        description: What the script says of itself.
        model: The model with real weights, by name.
        stand_in: Makes a small random one of its family in a folder; returns its name.

    Returns:
        The setting.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    kind = parser.add_mutually_exclusive_group(required=True)
    kind.add_argument("--online", action="store_true", help="real weights, which are downloaded")
    kind.add_argument("--offline", action="store_true", help="a small random model, and pictures made here")
    parser.add_argument("--model", default=model, help="by name, tag or folder, with --online")
    parser.add_argument("--pairs", help="what mope.open_pairs takes: a CSV, COCO captions, shards (with --online)")
    parser.add_argument("--root", help="folder that image files are relative to")
    parser.add_argument("--calibration", type=float, default=1000, help="images to score on, or their share")
    parser.add_argument("--test", type=float, default=1000, help="images to evaluate on, or their share")
    parser.add_argument("--steps", type=int, default=1000, help="training steps")
    parser.add_argument("--batch-size", type=int, default=256, help="pairs of a step")
    parser.add_argument("--output", type=Path, help="folder for the result; by default a temporary one")
    options = parser.parse_args()
    output = options.output or Path(tempfile.mkdtemp())
    groups, source = 16, options.pairs
    if options.offline:
        options.model, source = stand_in(output / "offline"), str(offline.scenes(output / "offline"))
        options.calibration, options.test, options.steps, options.batch_size, groups = 12, 12, 2, 12, 2
    elif source is None:
        parser.error("--online needs --pairs, the images and captions to score, train and test on")
    loaded = mope.load_model(options.model)
    data = mope.open_pairs(source, loaded.preprocess, loaded.tokenizer, root=options.root)
    parts = mope.split_pairs(data, calibration=options.calibration, test=options.test)  # disjoint by image
    return Setting(
        loaded,
        options.model,
        mope.gather_pairs(parts.calibration),
        mope.data.PairLoader(parts.train, batch_size=options.batch_size, shuffle=True, drop_last=True),
        mope.gather_pairs(parts.test),
        output,
        groups,
        options.steps,
    )


def show(row: dict[str, Any]) -> None:
    """Prints a line of what `mope.evaluate` found."""
    print(
        f"{row['stage']:10} {row['parameters'] / 1e6:8.2f} M parameters {row['multiply_adds'] / 1e9:8.3f} G multiply-adds   "
        f"image→text R@1 {row['i2t_r1']:5.1f}   text→image R@1 {row['t2i_r1']:5.1f}   ({row['pairs']} images)"
    )
