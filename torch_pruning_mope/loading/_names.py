"""The grammar of model names."""

import difflib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ..errors import ModelLoadError
from ..runtime import DEPLOYMENT

FORMS = "'tiny', ARCH, ARCH@TAG, ARCH@FILE, hf-hub:ORG/NAME, hf:ORG/NAME, mope:ORG/NAME, local-dir:FOLDER or a folder"
OPEN_CLIP_CONFIG, TRANSFORMERS_CONFIG = "open_clip_config.json", "config.json"

Form = Literal["tiny", "architecture", "hf", "hf-hub", "local-dir", "mope", "folder"]
_PREFIXES: dict[str, Form] = {"hf": "hf", "hf-hub": "hf-hub", "local-dir": "local-dir", "mope": "mope"}


@dataclass(frozen=True)
class ModelName:
    """A model name, parsed; ``mope`` and ``folder`` may be a checkpoint of this package."""

    text: str
    """The name as it was written."""
    form: Form
    source: str
    """Architecture, repository or folder."""
    weights: str | None = None
    """Of an architecture: the tag or file after ``@``; None without one."""

    @property
    def folder(self) -> Path | None:
        """The folder that it names, if that exists."""
        if self.form in {"tiny", "architecture", "hf-hub"}:
            return None
        folder = Path(self.source).expanduser()
        return folder if folder.is_dir() else None

    @property
    def label(self) -> str:
        """The name without paths of this machine, for what is published."""
        if self.form == "architecture" and self.weights is not None:
            return f"{self.source}@{Path(self.weights).name}"
        if self.form in {"folder", "local-dir"} or self.folder is not None:
            return Path(self.source).expanduser().resolve().name
        return self.text


def parse_name(name: str) -> ModelName:
    """Parses a model name. The first form that fits is taken, in the order of :func:`load_model`'s table."""
    import open_clip  # slow to import

    if name == "tiny":
        return ModelName(name, "tiny", name)
    prefix, colon, rest = name.partition(":")
    if colon and (form := _PREFIXES.get(prefix)):
        if not rest:
            raise ModelLoadError(f"name: something must follow {prefix}:, found nothing; write one of {FORMS}")
        return ModelName(name, form, rest)
    architecture, at, weights = name.partition("@")
    architecture = architecture.replace("/", "-")
    if architecture in open_clip.list_models():
        return ModelName(name, "architecture", architecture, weights if at else None)
    if name and Path(name).expanduser().is_dir():
        return ModelName(name, "folder", name)
    raise ModelLoadError(_unknown(name, architecture, weights))


def folder_form(name: str, folder: Path) -> Literal["exported", "local-dir", "hf"]:
    """Returns the library whose form a folder has."""
    if (folder / DEPLOYMENT).is_file():
        return "exported"
    if (folder / OPEN_CLIP_CONFIG).is_file():
        return "local-dir"
    if (folder / TRANSFORMERS_CONFIG).is_file():
        return "hf"
    files = sorted(path.name for path in folder.iterdir())
    raise ModelLoadError(
        f"name: a folder must hold {OPEN_CLIP_CONFIG} (open_clip) or {TRANSFORMERS_CONFIG} (transformers) beside the "
        f"weights, found {', '.join(files[:8]) or 'nothing'}{' …' if len(files) > 8 else ''} in {name!r}; for weights "
        "alone, write ARCH@FILE"
    )


def wrong_weights(architecture: str, weights: str, tags: list[str]) -> str:
    """Returns the message for ``ARCH@weights`` where that is neither a tag nor a file, with the likeliest correction."""
    mend = f"its tags are {', '.join(tags)}" if tags else "it has no tags: pass a file"
    if similar := _similar(weights, tags):
        mend = f"did you mean {_either(f'{architecture}@{tag}' for tag in similar)}?"
    return f"name: after {architecture}@ must come one of its pretrained tags or a file of weights, found {weights!r}; {mend}"


def _unknown(name: str, architecture: str, weights: str) -> str:
    """Returns the message for a name of no known form, with the likeliest correction."""
    import open_clip

    found, mend = repr(name), "open_clip.list_models() lists the architectures"
    if name and Path(name).expanduser().is_file():
        found = f"the file {name!r}, which does not say its architecture"
        mend = f"write ARCH@{name} with the architecture whose weights it holds, one of open_clip.list_models()"
    elif name.startswith(("/", ".", "~")):
        mend = "nothing is there, so correct the path"
    elif similar := _similar(architecture, [*open_clip.list_models(), "tiny"]):
        mend = f"did you mean {_either(f'{word}@{weights}' if weights else word for word in similar)}?"
    elif name.count("/") == 1:
        mend = f"write hf:{name} for a repository in transformers' form, hf-hub:{name} for one in open_clip's"
    return f"name: must be {FORMS}, found {found}; {mend}"


def _similar(word: str, known: Iterable[str]) -> list[str]:
    """Up to three words that are spelt alike, in any case of letters."""
    spelt = {candidate.lower(): candidate for candidate in known}
    return [spelt[found] for found in difflib.get_close_matches(word.lower(), spelt)]


def _either(words: Iterable[str]) -> str:
    return " or ".join(repr(word) for word in words)
