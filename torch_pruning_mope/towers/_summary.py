"""A printed summary of a dual encoder."""

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from itertools import groupby
from typing import Any

from ._opaque import OpaqueTower
from ._tower import Block, BlockTower, Tower


def summary(
    title: str, towers: Mapping[Any, BlockTower], unprunable: Mapping[str, str], in_one: Mapping[str, str]
) -> str:
    """Towers with their layers, heads and neurons, how they are scored, and what stays."""
    lines = [title]
    for name, tower in towers.items():
        width = f", width {tower.width}" if tower.streams else ""
        lines.append(
            f"  {name}: {', '.join(_layers(tower)) or 'nothing to prune'}{width}; {_run(tower, in_one.get(name, ''))}"
        )
    stays = Counter((re.sub(r"\b\d+\b", "*", name), reason) for name, reason in unprunable.items())
    for (name, reason), count in stays.items():
        lines.append(f"  stays: {name}{f' ({count} times)' if count > 1 else ''}: {reason}")
    return "\n".join(lines)


def _layers(tower: BlockTower) -> Iterator[str]:
    for units, blocks in groupby(tower.blocks, key=_units):
        yield f"{len(list(blocks))} layers x {units}"


def _units(block: Block) -> str:
    heads = [] if block.attention is None else [f"{block.attention.num_units} heads"]
    neurons = [] if block.feed_forward is None else [f"{block.feed_forward.num_units} neurons"]
    return " x ".join(heads + neurons)


def _run(tower: BlockTower, reason: str) -> str:
    if isinstance(tower, Tower):
        return "layers scored in parts"
    in_order = isinstance(tower, OpaqueTower) and tower.in_order and tower.blocks
    return f"{'scored layer by layer' if in_order else 'scored as a whole'}{f' ({reason})' if reason else ''}"
