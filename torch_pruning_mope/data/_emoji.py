"""Emoji scenes: one to three glyphs on a coloured background, and a caption that is true of them.

A scene is plain data (which glyph, where, how large, on what); `caption` and `render` are pure functions of it. All
draws go through `random.Random.random`, the one method whose stream Python promises to keep between versions.
"""

import csv
import functools
import io
import itertools
import random
import re
from dataclasses import dataclass
from importlib import resources
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

IMAGE_SIZE = 64
SPRITE_SIZE = 48
GLYPH_SIZES = (16, 20, 24, 28, 32, 40, 48, 56)
MAX_GLYPHS = 3
BACKGROUNDS = {
    "red": (200, 40, 45),
    "orange": (240, 140, 40),
    "yellow": (245, 220, 80),
    "green": (60, 150, 70),
    "teal": (40, 160, 165),
    "blue": (50, 90, 200),
    "purple": (130, 60, 165),
    "pink": (245, 160, 190),
    "brown": (115, 75, 45),
    "black": (20, 20, 20),
    "gray": (135, 135, 135),
    "white": (245, 245, 245),
}
RELATIONS = ("to the left of", "to the right of", "above", "below")
GRAMMAR_WORDS = tuple(sorted({"a", "an", "on", *" ".join(RELATIONS).split(), *BACKGROUNDS}))

SINGULAR_IN_S = re.compile(r".*(ss|us|tennis|rhinoceros)$")

Box = tuple[int, int, int, int]


class Concept(NamedTuple):
    """One emoji: its code point in hexadecimal, its Unicode group and its lower-case name."""

    code_point: str
    group: str
    name: str

    @property
    def noun_phrase(self) -> str:
        """The name with the article it needs: "a red apple", "an owl", "grapes"."""
        head = re.split(r" (?:with|over|showing|of|in) ", self.name)[0]
        if head.endswith("s") and not SINGULAR_IN_S.match(head):
            return self.name
        takes_an = self.name[0] in "aeio" or self.name.startswith(("umbrella", "x-ray"))
        return f"{'an' if takes_an else 'a'} {self.name}"


class Glyph(NamedTuple):
    """One placed sprite: index of its concept, left and top edge and side length, in pixels."""

    concept: int
    x: int
    y: int
    size: int


@dataclass(frozen=True)
class Scene:
    """Content of one image, in the order of its caption.

    `relations[i]` holds between `glyphs[i]` and `glyphs[i + 1]`; `background` is a key of `BACKGROUNDS`.
    """

    glyphs: tuple[Glyph, ...]
    relations: tuple[str, ...]
    background: str

    @property
    def content(self) -> tuple[tuple[int, ...], str]:
        """Sorted concepts and the background: two scenes of equal content are twins."""
        return tuple(sorted(glyph.concept for glyph in self.glyphs)), self.background


@functools.cache
def concepts() -> tuple[Concept, ...]:
    """Returns all concepts, in the order of the sprite sheet."""
    text = (resources.files(__package__) / "assets" / "concepts.tsv").read_text(encoding="utf-8")
    return tuple(Concept(**row) for row in csv.DictReader(text.splitlines(), delimiter="\t"))


@functools.cache
def _sheet() -> Image.Image:
    data = (resources.files(__package__) / "assets" / "sprites.png").read_bytes()
    return Image.open(io.BytesIO(data)).convert("RGBA")


@functools.cache
def _sprite(concept: int, size: int) -> tuple[npt.NDArray[np.uint16], npt.NDArray[np.uint16]]:
    """Returns premultiplied colour `[size, size, 3]` and transparency `[size, size, 1]` (255 minus alpha)."""
    columns = _sheet().width // SPRITE_SIZE
    left, top = concept % columns * SPRITE_SIZE, concept // columns * SPRITE_SIZE
    cell = _sheet().crop((left, top, left + SPRITE_SIZE, top + SPRITE_SIZE))
    pixels = np.asarray(cell.resize((size, size), Image.Resampling.BICUBIC), dtype=np.uint16)
    alpha = pixels[..., 3:]
    return pixels[..., :3] * alpha, 255 - alpha


def choice(rng: random.Random, count: int) -> int:
    """Draws from `range(count)`."""
    return int(rng.random() * count)


def draw_content(rng: random.Random, num_glyphs: int) -> tuple[tuple[int, ...], str]:
    """Returns distinct concepts at random, in the order of mention, and a background."""
    chosen: list[int] = []
    while len(chosen) < num_glyphs:
        concept = choice(rng, len(concepts()))
        if concept not in chosen:
            chosen.append(concept)
    return tuple(chosen), tuple(BACKGROUNDS)[choice(rng, len(BACKGROUNDS))]


def draw_scene(rng: random.Random, chosen: tuple[int, ...], background: str) -> Scene:
    """Returns the chosen concepts placed without overlap, with a true relation between each and the next one."""
    boxes: list[Box] = [(0, 0, IMAGE_SIZE, IMAGE_SIZE)]
    while len(boxes) < len(chosen):
        boxes = _cut_largest(rng, boxes)
    glyphs = [_place(rng, concept, boxes.pop(choice(rng, len(boxes)))) for concept in chosen]
    relations = []
    for first, second in itertools.pairwise(glyphs):
        true_ones = true_relations(first, second)
        relations.append(true_ones[choice(rng, len(true_ones))])
    return Scene(tuple(glyphs), tuple(relations), background)


def _cut_largest(rng: random.Random, boxes: list[Box]) -> list[Box]:
    """Returns the boxes with the largest cut in two across its longer side; all stay apart in x or in y."""
    boxes = sorted(boxes, key=lambda box: (box[2] - box[0]) * (box[3] - box[1]))
    x0, y0, x1, y1 = boxes.pop()
    width, height = x1 - x0, y1 - y0
    fraction = 0.35 + 0.3 * rng.random()
    upright = rng.random() < 0.5 if width == height else width > height
    if upright:
        cut = x0 + round(width * fraction)
        return [*boxes, (x0, y0, cut, y1), (cut, y0, x1, y1)]
    cut = y0 + round(height * fraction)
    return [*boxes, (x0, y0, x1, cut), (x0, cut, x1, y1)]


def _place(rng: random.Random, concept: int, box: Box) -> Glyph:
    x0, y0, x1, y1 = box
    room = min(x1 - x0, y1 - y0)
    fitting = [size for size in GLYPH_SIZES if 0.5 * room <= size <= room]
    size = fitting[choice(rng, len(fitting))]
    return Glyph(concept, x0 + choice(rng, x1 - x0 - size + 1), y0 + choice(rng, y1 - y0 - size + 1), size)


def true_relations(first: Glyph, second: Glyph) -> list[str]:
    """Returns the relations that hold from `first` to `second`: one ends, in x or in y, before the other begins."""
    holds = (
        first.x + first.size <= second.x,
        second.x + second.size <= first.x,
        first.y + first.size <= second.y,
        second.y + second.size <= first.y,
    )
    return [relation for relation, true in zip(RELATIONS, holds, strict=True) if true]


def caption(scene: Scene) -> str:
    """Returns the scene in words, for instance "a red apple to the left of a guitar on purple"."""
    phrases = [concepts()[glyph.concept].noun_phrase for glyph in scene.glyphs]
    related = [f"{relation} {phrase}" for relation, phrase in zip(scene.relations, phrases[1:], strict=True)]
    return " ".join([phrases[0], *related, "on", scene.background])


def render(scene: Scene) -> npt.NDArray[np.uint8]:
    """Returns the scene as a picture `[64, 64, 3]`, 8-bit RGB; integer arithmetic: the same on every machine."""
    image = np.empty((IMAGE_SIZE, IMAGE_SIZE, 3), dtype=np.uint8)
    image[:] = BACKGROUNDS[scene.background]
    for concept, x, y, size in scene.glyphs:
        colour, transparency = _sprite(concept, size)
        window = image[y : y + size, x : x + size]
        window[:] = (colour + window * transparency + 127) // 255
    return image
