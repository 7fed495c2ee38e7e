"""Captions to the inputs of a text encoder."""

import gzip
import html
import string
import unicodedata
from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import ModelLoadError

KINDS = ("words", "bpe", "tokenizers")
_MOST_LENGTH = 2**14
_SPECIAL = ("<start_of_text>", "<end_of_text>")
_SUFFIXES = ("'s", "'t", "'re", "'ve", "'m", "'ll", "'d")


class Tokenizer:
    """Turns captions into ``int64 [N, T]``, as ``deployment.json`` describes it: cut and padded to ``length``.

    ``words`` looks words up in a list; ``bpe`` is CLIP's byte-pair encoding; ``tokenizers`` needs the package of that name.
    CLIP's repair of broken Unicode (ftfy) is not done: pass clean text.
    """

    def __init__(self, described: Any, folder: Path) -> None:
        kind = described.get("kind") if isinstance(described, dict) else None
        length = described.get("length") if isinstance(described, dict) else None
        if kind not in KINDS or type(length) is not int or not 2 < length <= _MOST_LENGTH:
            raise ModelLoadError(
                f"tokenizer must be as FORMAT.md of the package describes it; found {described!r:.200}."
            )
        if (file := described.get("file", "")) != Path(str(file)).name:
            raise ModelLoadError(f"tokenizer must name a file of its folder; found {file!r:.200}.")
        self.length = length
        makers: dict[str, Callable[[Any, Path], Any]] = {"words": _Words, "bpe": _Bpe, "tokenizers": _Fast}
        try:
            self._encoder = makers[kind](described, folder)
        except (KeyError, TypeError, ValueError, OSError) as error:
            raise ModelLoadError(
                f"tokenizer must be as FORMAT.md of the package describes it; found {type(error).__name__}: {error}."
            ) from error

    def __call__(self, texts: str | Sequence[str]) -> NDArray[np.int64]:
        """Returns the ids ``[N, T]``."""
        texts = [texts] if isinstance(texts, str) else list(texts)
        ids = np.full((len(texts), self.length), self._encoder.pad, np.int64)
        for row, text in zip(ids, texts, strict=True):
            found = self._encoder(text, self.length)[: self.length]
            row[: len(found)] = found
        return ids


class _Words:
    """Words of a list; the word of number i has id i + 1."""

    def __init__(self, described: Any, _: Path) -> None:
        self._ids = {str(word): number for number, word in enumerate(described["words"], start=1)}
        self.pad, self._start, self._end = int(described["pad"]), int(described["start"]), int(described["end"])

    def __call__(self, text: str, length: int) -> list[int]:
        words = text.lower().split()
        if unknown := [word for word in words if word not in self._ids]:
            raise ValueError(f"texts must be of the {len(self._ids)} words that the model knows; found {unknown[:5]}.")
        if len(words) > length - 2:
            raise ValueError(f"texts must have at most {length - 2} words; found {len(words)}. Shorten them.")
        return [self._start, *(self._ids[word] for word in words), self._end]


class _Bpe:
    """CLIP's byte-pair encoding; its file is open_clip's list of merges."""

    pad = 0

    def __init__(self, described: Any, folder: Path) -> None:
        lines = gzip.decompress((folder / described["file"]).read_bytes()).decode("utf-8").split("\n")
        merges = [tuple(line.split()) for line in lines[1 : described["merges"] + 1]]
        self._ranks = {merge: rank for rank, merge in enumerate(merges)}
        self._letters = _byte_letters()
        words = [*self._letters.values(), *(f"{letter}</w>" for letter in self._letters.values())]
        words += ["".join(merge) for merge in merges]
        self._ids = {word: number for number, word in enumerate([*words, *_SPECIAL])}
        self._start, self._end = (self._ids[word] for word in _SPECIAL)
        self._clean = _CLEANS[described["clean"]]
        self._merged = lru_cache(2**16)(self._merge)

    def __call__(self, text: str, length: int) -> list[int]:
        ids = [self._start]
        for word in _split(self._clean(html.unescape(html.unescape(text)).strip())):
            ids += self._merged("".join(self._letters[byte] for byte in word.encode("utf-8")))
        return [*ids[: length - 1], self._end]

    def _merge(self, word: str) -> list[int]:
        if word in _SPECIAL:
            return [self._ids[word]]
        parts = [*word[:-1], f"{word[-1]}</w>"]
        while len(parts) > 1:
            pairs = list(pairwise(parts))
            best = min(pairs, key=lambda pair: self._ranks.get(pair, len(self._ranks)))
            if best not in self._ranks:
                break
            merged: list[str] = []
            for part in parts:
                if merged and (merged[-1], part) == best:
                    merged[-1] += part
                else:
                    merged.append(part)
            parts = merged
        return [self._ids[part] for part in parts]


class _Fast:
    """A ``tokenizer.json`` of Hugging Face's tokenizers."""

    def __init__(self, described: Any, folder: Path) -> None:
        try:
            import tokenizers
        except ImportError as error:
            raise ModelLoadError(
                "tokenizer.json needs the package tokenizers; found it missing. pip install tokenizers"
            ) from error
        self._tokenizer = tokenizers.Tokenizer.from_file(str(folder / described["file"]))
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(described["length"])
        self.pad = int(described["pad"])
        self._clean = _CLEANS[described["clean"]]

    def __call__(self, text: str, _: int) -> list[int]:
        ids: list[int] = self._tokenizer.encode(self._clean(text)).ids
        return ids


def _canonical(text: str) -> str:
    return _lower(text.replace("_", " ").translate(str.maketrans("", "", string.punctuation)))


def _lower(text: str) -> str:
    return " ".join(text.split()).lower()


_CLEANS: dict[str, Callable[[str], str]] = {
    "none": lambda text: text,
    "case": str.lower,
    "whitespace": lambda text: " ".join(text.split()),
    "lower": _lower,
    "canonicalize": _canonical,
}


def _byte_letters() -> dict[int, str]:
    """Returns a printable character for each byte, in the order of CLIP's vocabulary."""
    plain = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in plain]
    return {byte: chr(byte) for byte in plain} | {byte: chr(256 + place) for place, byte in enumerate(others)}


def _split(text: str) -> list[str]:
    """CLIP's pattern: special tokens, English suffixes, runs of letters, single numerals, runs of other signs."""
    found: list[str] = []
    place = 0
    while place < len(text):
        rest = text[place : place + 15].lower()
        kind = _class_of(text[place])
        end = place + 1
        special = next((word for word in (*_SPECIAL, *_SUFFIXES) if rest.startswith(word)), "")
        if special:
            end = place + len(special)
        elif kind != "N":
            while end < len(text) and _class_of(text[end]) == kind:
                end += 1
        if kind != "Z":
            found.append(text[place:end])
        place = end
    return found


def _class_of(character: str) -> str:
    if character.isspace():
        return "Z"
    major = unicodedata.category(character)[0]
    return major if major in "LN" else "S"
