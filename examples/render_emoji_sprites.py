"""Renders the embedded sprite sheet from Noto Color Emoji.

Needs the Debian packages `fonts-noto-color-emoji` (2.042 was used) and `unicode-data` (15.0), Pillow with FreeType:

    python examples/render_emoji_sprites.py --font NotoColorEmoji.ttf --emoji-test emoji-test.txt --out DIR

writes `sprites.png` (a grid of 48 px RGBA cells) and `concepts.tsv` (code point, group, name; row i is cell i).
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import NamedTuple

from PIL import Image, ImageDraw, ImageFont

STRIKE = 109  # the font's only bitmap size, in px
GLYPH_BOX = (136, 128)  # what a glyph of that strike covers, in px
CELL = 48
COLUMNS = 28
GROUPS = ("Animals & Nature", "Food & Drink", "Travel & Places", "Activities", "Objects")
NOT_NOUNS = {"locked", "unlocked", "foggy"}
LINE = re.compile(r"(?P<codes>[0-9A-F ]+?)\s*; fully-qualified\s*# \S+ E[\d.]+ (?P<name>.*)")


class Concept(NamedTuple):
    """One emoji: its code point, its Unicode group and its lower-case name."""

    code_point: str
    group: str
    name: str


def read_concepts(emoji_test: Path) -> list[Concept]:
    """Reads the emoji that scenes are made of, in the order of Unicode's own list.

    Kept are single code points of five groups with names of at most three ASCII words. Clock faces are left out: at
    scene size "ten-thirty" and "eleven-thirty" are the same picture.
    """
    group, kept = "", []
    for line in emoji_test.read_text(encoding="utf-8").splitlines():
        if line.startswith("# group: "):
            group = line.removeprefix("# group: ").strip()
        match = LINE.match(line)
        if match is None or group not in GROUPS:
            continue
        codes = [code for code in match["codes"].split() if code != "FE0F"]
        name = match["name"].strip().lower().replace("’", "'")
        is_clock_face = name.endswith(("o'clock", "-thirty"))
        is_plain = re.fullmatch(r"[a-z' -]+", name) is not None and len(name.split()) <= 3
        if len(codes) == 1 and is_plain and not is_clock_face and name not in NOT_NOUNS:
            kept.append(Concept(codes[0], group, name))
    return kept


def render_sprite(concept: Concept, font: ImageFont.FreeTypeFont) -> Image.Image:
    """Renders one glyph, cropped to what is drawn, centred in a transparent square cell."""
    canvas = Image.new("RGBA", GLYPH_BOX)
    ImageDraw.Draw(canvas).text((0, 0), chr(int(concept.code_point, 16)), font=font, embedded_color=True)
    box = canvas.getchannel("A").getbbox()
    if box is None:
        raise ValueError(
            f"--font: needs a glyph for U+{concept.code_point} ({concept.name}), found none; use a newer font"
        )
    glyph = canvas.crop(box)
    scale = CELL / max(glyph.size)
    size = (max(1, round(glyph.width * scale)), max(1, round(glyph.height * scale)))
    glyph = glyph.resize(size, Image.Resampling.LANCZOS)
    cell = Image.new("RGBA", (CELL, CELL))
    cell.paste(glyph, ((CELL - size[0]) // 2, (CELL - size[1]) // 2))
    # Colours under full transparency are never seen; zeroing them makes the PNG smaller.
    invisible = cell.getchannel("A").point(lambda alpha: 255 if alpha == 0 else 0)
    cell.paste((0, 0, 0, 0), mask=invisible)
    return cell


def main() -> None:
    """Renders the sheet and its names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--font", type=Path, required=True, help="NotoColorEmoji.ttf")
    parser.add_argument("--emoji-test", type=Path, required=True, help="Unicode's emoji-test.txt")
    parser.add_argument("--out", type=Path, required=True, help="folder that receives sprites.png and concepts.tsv")
    options = parser.parse_args()

    concepts = read_concepts(options.emoji_test)
    font = ImageFont.truetype(str(options.font), STRIKE)
    rows = -(-len(concepts) // COLUMNS)
    sheet = Image.new("RGBA", (COLUMNS * CELL, rows * CELL))
    for index, concept in enumerate(concepts):
        sheet.paste(render_sprite(concept, font), (index % COLUMNS * CELL, index // COLUMNS * CELL))
    options.out.mkdir(parents=True, exist_ok=True)
    sheet.save(options.out / "sprites.png", optimize=True)
    lines = ["code_point\tgroup\tname", *("\t".join(concept) for concept in concepts)]
    (options.out / "concepts.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(f"{len(concepts)} concepts, sheet {sheet.size}, {(options.out / 'sprites.png').stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
