"""Image files with captions, as a map-style dataset."""

import copy
import hashlib
import random
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from .._io import printable, resolve_inside
from ..errors import DataError
from ._decode import Preprocess, Tokenizer, prepare, read_picture_file
from ._listing import CaptionedImage
from ._skipped import Captions, Counted, Problem, Skipped

FIRST = 16  # entries, of which one must have a file when a dataset is opened
TRIES = 100  # draws of a substitute


class Described(NamedTuple):
    """An image, ready for the model, and the tokens `[captions, context]` of all its captions."""

    image: Tensor
    tokens: Tensor


class ImagePairs(Counted, Dataset[tuple[Tensor, Tensor]]):
    """Images with captions, an item per image: `(image, tokens)`.

    An item has one of the image's captions, drawn anew in each epoch (`set_epoch`); `describe` has them all. In place of an
    image that cannot be read comes another one, drawn at random, so batches keep their size; `skipped` counts it. With the
    same seed and epoch, items are the same.
    """

    def __init__(
        self,
        entries: Sequence[CaptionedImage],
        preprocess: Preprocess,
        tokenizer: Tokenizer,
        *,
        root: str | Path = ".",
        captions: Captions = "random",
        max_skipped: float = 0.1,
        seed: int = 0,
        name: str = "entries",
        problems: Sequence[Problem] = (),
        follow_links: bool = False,
    ) -> None:
        self.entries = list(entries)
        self.root, self.follow_links = Path(root), follow_links
        self.preprocess, self.tokenizer = preprocess, tokenizer
        dropped = Skipped.of(problems, len(self.entries))
        if not self.entries:
            raise DataError(f"{name} must hold at least one image with a caption; found none ({dropped}).")
        super().__init__(name, captions, max_skipped, seed, dropped, expected=(len(self.entries), 0))
        self._check_files()

    def _check_files(self) -> None:
        """Raises DataError unless one of the first files can be opened."""
        for entry in self.entries[:FIRST]:
            with suppress(OSError):
                resolve_inside(self.root, entry.name, follow_links=self.follow_links)
                return
        name = self.entries[0].name
        first = printable(str(self.root / name))
        hint = " A backslash does not separate folders here: write /." if "\\" in name else ""
        with suppress(OSError):
            resolve_inside(self.root, name, follow_links=True)
            hint = " That one is outside: pass a folder above it as root, or follow_links=True."
        raise DataError(
            f"root must be the folder that the image files of {self.name} are relative to, and lie in; found none of the first "
            f"{min(FIRST, len(self))} (first: {first}).{hint}"
        )

    @property
    def files(self) -> list[Path]:
        """The file of each image, without links and `..`, to see whether datasets share any."""
        return [(self.root / entry.name).resolve() for entry in self.entries]

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        wanted = self.entries[index].name
        for attempt in range(TRIES):
            entry = self.entries[index]
            rng = random.Random(f"{self.seed} {self.epoch} {wanted} {attempt}".encode(errors="surrogatepass"))
            picture = self._picture(entry, counts=attempt == 0)
            if picture is not None:
                image = prepare(picture, self.preprocess, str(self.root / entry.name))
                caption = entry.captions[0] if self.captions == "first" else rng.choice(entry.captions)
                return image, self.tokenizer([caption])[0]
            index = rng.randrange(len(self.entries))
        raise DataError(
            f"{self.name} must hold images that can be read; found none in {TRIES} draws: {self.skipped}. Mend the files."
        )

    def describe(self, index: int) -> Described | None:
        """Returns an image with all its captions; None if it cannot be read, which is counted."""
        entry = self.entries[index]
        picture = self._picture(entry)
        if picture is None:
            return None
        image = prepare(picture, self.preprocess, str(self.root / entry.name))
        return Described(image, self.tokenizer(list(entry.captions)))

    def select(self, indices: Sequence[int], name: str | None = None) -> "ImagePairs":
        """Returns a dataset of some of the images, which counts for itself."""
        part = copy.copy(self)
        part.entries = [self.entries[index] for index in indices]
        part.name = self.name if name is None else name
        part.dropped = Skipped(read=len(part.entries))
        part.expected = (len(part.entries), 0)
        part._restart()
        return part

    def _picture(self, entry: CaptionedImage, *, counts: bool = True) -> Image.Image | None:
        picture, found = None, Skipped(read=1)
        try:
            picture = read_picture_file(self.root, entry.name, follow_links=self.follow_links)
        except Problem as problem:
            found = Skipped.of([problem])
        if counts:
            self._count(found)
        return picture


def position(seed: int, name: str) -> float:
    """Returns a number in [0, 1) that depends on the seed and the name alone: the same on every machine, in any order."""
    return int.from_bytes(hashlib.sha256(f"{seed} {name}".encode(errors="surrogatepass")).digest()[:6], "big") / 2**48
