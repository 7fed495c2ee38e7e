"""Writing checkpoints."""

import json
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .._io import open_regular, write_folder
from .._io._tensors import save_tensors
from .._version import __version__
from ..encoder import EncoderCore
from ..errors import ModelLoadError
from ..surgery import HeadProjection
from . import _base
from ._assemble import cut
from ._base import Base
from ._card import MARK, model_card, sizes_of
from ._checkpoint import FORMAT, VERSION, Config, is_checkpoint, read_checkpoint
from ._files import BASE, CARD, CONFIG, WEIGHTS, sha256_of
from ._load import fetch
from ._meta import build, wrap
from ._spec import Spec, compose, counts, ranges, spec_of


def save(
    encoder: EncoderCore,
    folder: Path,
    *,
    base: str | Path | None,
    metrics: Mapping[str, float] | None,
    cache: str | None,
) -> None:
    """Writes a checkpoint, or leaves the folder as it was."""
    encoder.check_has_weights()
    origin, spec = _origin(encoder, None if base is None else str(base), cache)
    before = None if origin.is_given else _check_base(encoder, origin, spec)
    state = {name: tensor.detach() for name, tensor in encoder.model.state_dict().items()}
    config = _config(encoder, origin, spec, state)
    card = model_card(origin.description, before, sizes_of(encoder), dict(metrics or {}))
    with write_folder(folder) as new:
        _write_base(new, origin)
        save_tensors(new / WEIGHTS, state, {"format": "pt"})
        listed = (*sorted(new.glob(f"{BASE}/*")), new / WEIGHTS)
        config = replace(config, sha256={path.relative_to(new).as_posix(): sha256_of(path) for path in listed})
        if _is_ours(folder / CARD):
            (new / CARD).write_text(card, "utf-8")
        text = json.dumps(asdict(config), indent=1, ensure_ascii=False, allow_nan=False)
        (new / CONFIG).write_text(f"{text}\n", "utf-8")


def _write_base(folder: Path, origin: Base) -> None:
    (folder / BASE).mkdir()  # if it stays empty, it removes that of another model
    for name, content in origin.read().items():
        (folder / BASE / name).write_bytes(content)


def _is_ours(card: Path) -> bool:
    """Returns True if there is no card, or one that this package wrote."""
    if not card.exists():
        return True
    try:
        with open_regular(card) as file:
            return MARK.encode() in file.read()
    except OSError:
        return False


def _config(encoder: EncoderCore, origin: Base, spec: Spec, state: Mapping[str, Tensor]) -> Config:
    """Returns the configuration, less the digests."""
    model: nn.Module = encoder.model
    heads = {
        name: ranges(module.heads.tolist())
        for name, module in model.named_modules()
        if isinstance(module, HeadProjection)
    }
    buffers: dict[str, Any] = {
        name: str(buffer.dtype).removeprefix("torch.")
        for name, buffer in model.named_buffers()
        if name not in state and buffer.is_floating_point() and buffer.dtype != torch.float32
    }
    versions = {FORMAT: __version__, "torch": torch.__version__}
    return Config(FORMAT, VERSION, versions, origin.description, spec, heads, buffers, {})


def _origin(encoder: EncoderCore, base: str | None, cache: str | None) -> tuple[Base, Spec]:
    """Returns the encoder's model before pruning, and what is left of it."""
    own = spec_of(encoder)
    if base is None:
        return encoder.origin or _base.describe(None, encoder.model, cache), own
    source = base.removeprefix("mope:")
    if source == base and not is_checkpoint(Path(source).expanduser()):
        return _base.describe(base, encoder.model, cache), own
    checkpoint = read_checkpoint(fetch(source, cache_dir=cache))
    if encoder.origin is not None and encoder.origin.description == checkpoint.base.description:
        return encoder.origin, own  # its layers are numbered as in the base already
    return checkpoint.base, compose(own, checkpoint.config.towers)


def _check_base(encoder: EncoderCore, origin: Base, spec: Spec) -> dict[str, int]:
    """Builds the base as loading will, checks that cutting it gives the encoder's model, and returns how large it was."""
    model: nn.Module = encoder.model
    with tempfile.TemporaryDirectory() as folder:
        _write_base(Path(folder), origin)
        whole = build(lambda: _base.build(origin.description, Path(folder)))
    twin, _ = wrap(whole, EncoderCore)
    before = sizes_of(twin)
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    differing: list[str] = []
    try:
        cut(twin, spec, shapes)
    except ModelLoadError as error:
        differing = [str(error)]
    found = {name: tuple(tensor.shape) for name, tensor in twin.model.state_dict().items()}
    differing += sorted(name for name in found.keys() | shapes.keys() if found.get(name) != shapes.get(name))[:3]
    ours, theirs = repr(model).splitlines(), repr(twin.model).splitlines()
    differing += [own.strip() for own, other in zip(ours, theirs, strict=False) if own != other][:3]
    if differing or len(ours) != len(theirs) or counts(spec_of(twin), spec) != counts(spec):
        raise ModelLoadError(
            f"base must be what the model was before it was pruned; found {origin.description.get('name')!r}, which differs: "
            f"{'; '.join(differing) or 'other layers'}. Pass the name that it was loaded by."
        )
    return before
