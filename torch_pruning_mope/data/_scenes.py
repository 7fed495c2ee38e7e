"""The three splits of the emoji scenes, as pairs to evaluate on and as a stream to train on.

The *content* of a scene (its set of concepts and its background) decides its split by a hash, so that splits share no
content, hence no caption, whatever the seeds and sizes.
"""

import functools
import hashlib
import itertools
import random
from collections.abc import Iterator
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float, Int
from torch import Tensor

from ._emoji import Scene, caption, draw_content, draw_scene, render
from ._pairs import Pairs
from ._tiny_clip import EmojiTokenizer

Split = Literal["train", "calibration", "test"]
Content = tuple[tuple[int, ...], str]

MAX_GALLERY = 20_000
GLYPH_SHARES = (0.2, 0.4, 0.4)  # scenes of one, two and three glyphs


def split_of(content: Content) -> Split:
    """Returns the split that a content belongs to: a tenth is test, a tenth calibration, the rest train."""
    chosen, background = content
    digest = hashlib.sha256(f"{sorted(chosen)} {background}".encode()).digest()
    match int.from_bytes(digest[:8], "big") % 10:
        case 0:
            return "test"
        case 1:
            return "calibration"
        case _:
            return "train"


def emoji_scenes(split: Split, size: int = 1000, seed: int = 0) -> list[tuple[npt.NDArray[np.uint8], str]]:
    """Returns pictures `[64, 64, 3]` (8-bit RGB) and their captions; `emoji_pairs` gives the same as tensors."""
    return [(render(scene), caption(scene)) for scene in _gallery(split, size, seed)]


def emoji_pairs(split: Split, size: int = 1000, seed: int = 0) -> Pairs:
    """Returns pairs whose every caption is true of exactly one image.

    Images are `[size, 3, 64, 64]` float32 in [-1, 1], tokens `[size, 24]` int64. No two scenes show the same concepts
    on the same background, nor are one's concepts all among the other's. The pairs of a smaller size are the first of
    a larger one. An unknown split and a size outside 2 to 20,000 raise ValueErrors.
    """
    scenes = _gallery(split, size, seed)
    return Pairs(*_to_tensors(scenes))


def emoji_batches(
    steps: int, batch_size: int = 128, seed: int = 0, curriculum_steps: int = 1000, start: int = 0
) -> Iterator[tuple[Float[Tensor, "B 3 64 64"], Int[Tensor, "B 24"]]]:
    """Streams batches of the training split, single objects first."""
    # The share of single-glyph scenes falls from 95 % to 20 % over the first `curriculum_steps` steps; without this the
    # tiny CLIP barely learns. A batch depends on the seed and its own step only, so a run of more steps begins like a
    # shorter one, and a run resumed at step `start` goes on as if it had never stopped.
    for step in range(start, steps):
        rng = _rng(f"batch {seed} {step}")
        hardness = min(1.0, step / max(1, curriculum_steps))
        single = 0.95 + hardness * (GLYPH_SHARES[0] - 0.95)
        shares = (single, (1 - single) / 2, (1 - single) / 2)
        scenes: dict[Content, Scene] = {}
        while len(scenes) < batch_size:
            scene = _draw(rng, "train", shares)
            scenes.setdefault(scene.content, scene)
        yield _to_tensors(list(scenes.values()))


@functools.cache
def _tokenizer() -> EmojiTokenizer:
    return EmojiTokenizer()


def _rng(name: str) -> random.Random:
    return random.Random(int.from_bytes(hashlib.sha256(name.encode()).digest()[:16], "big"))


def _draw(rng: random.Random, split: Split, shares: tuple[float, ...]) -> Scene:
    """Returns a random scene of the split; `shares[i]` is the share of scenes with i + 1 glyphs."""
    while True:
        threshold = rng.random()
        num_glyphs = 1 + sum(threshold >= total for total in itertools.accumulate(shares[:-1]))
        chosen, background = draw_content(rng, num_glyphs)
        if split_of((chosen, background)) == split:
            return draw_scene(rng, chosen, background)


def _gallery(split: Split, size: int, seed: int) -> list[Scene]:
    if split not in get_args(Split):
        raise ValueError(f"split must be one of {', '.join(get_args(Split))}; found {split!r}.")
    if not 2 <= size <= MAX_GALLERY:
        raise ValueError(
            f"size must be between 2 and {MAX_GALLERY} pairs; found {size}. Draw a smaller gallery, or stream training batches "
            "with emoji_batches."
        )
    rng = _rng(f"gallery {split} {seed}")
    scenes: list[Scene] = []
    shown: set[Content] = set()  # contents of the gallery
    implied: set[Content] = set()  # these and everything that is also true of one of its images
    while len(scenes) < size:
        scene = _draw(rng, split, GLYPH_SHARES)
        parts = _parts(scene.content)
        if scene.content in implied or any(part in shown for part in parts):
            continue
        scenes.append(scene)
        shown.add(scene.content)
        implied.update(parts)
    return scenes


def _parts(content: Content) -> list[Content]:
    """Returns all non-empty subsets of the concepts, on the same background."""
    chosen, background = content
    subsets = (itertools.combinations(chosen, count) for count in range(1, len(chosen) + 1))
    return [(subset, background) for subset in itertools.chain.from_iterable(subsets)]


def _to_tensors(scenes: list[Scene]) -> tuple[Float[Tensor, "B 3 64 64"], Int[Tensor, "B 24"]]:
    pixels = torch.from_numpy(np.stack([render(scene) for scene in scenes]))
    images = pixels.permute(0, 3, 1, 2).contiguous().float() / 127.5 - 1.0
    return images, _tokenizer()([caption(scene) for scene in scenes])
