"""Writing checkpoints."""

import importlib.metadata
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor, nn

from .._io import write_folder
from .._version import __version__
from ..encoder import EncoderCore
from ..errors import ModelLoadError
from ..surgery import HeadProjection
from . import _base
from ._assemble import cut, summary
from ._base import Base
from ._card import MARK, Sizes, model_card
from ._checkpoint import FORMAT, VERSION, is_checkpoint, open_checkpoint
from ._files import BASE, CARD, CONFIG, WEIGHTS, sha256_of
from ._json import seal
from ._load import fetch
from ._manifest import write_tensor
from ._meta import build, wrap
from ._spec import Spec, compose, sizes, spec_of
from ._spec_json import to_json

_LIBRARIES = ("torch", "open_clip_torch", "timm", "transformers", "torch-pruning", "safetensors")


def save(
    encoder: EncoderCore,
    folder: Path,
    *,
    base: str | Path | None,
    metrics: Mapping[str, float] | None,
    cache: str | None,
) -> None:
    """Writes a checkpoint, or leaves the folder as it was; a kill leaves either.

    Args:
        encoder: The encoder.
        folder: Where to.
        base: What its model was before pruning.
        metrics: For the model card.
        cache: Where downloads are kept.
    """
    encoder.check_has_weights()
    origin, spec = _origin(encoder, None if base is None else str(base), cache)
    before = None if origin.is_given else _check_base(encoder, origin, spec)
    state = {name: tensor.detach() for name, tensor in encoder.model.state_dict().items()}
    content = _content(encoder, origin, spec, state)
    card = model_card(spec, origin.description, before, Sizes.of(encoder), dict(metrics or {}))
    with write_folder(folder, [BASE, WEIGHTS, CARD, CONFIG]) as new:
        _write_base(new, origin)
        save_file(_apart(state), new / WEIGHTS, metadata={"format": "pt"})
        listed = {path.relative_to(new).as_posix(): path for path in (*new.glob(f"{BASE}/*"), new / WEIGHTS)}
        content["files"] = {
            name: {"bytes": path.stat().st_size, "sha256": sha256_of(path)} for name, path in listed.items()
        }
        if not (folder / CARD).exists() or MARK in (folder / CARD).read_text("utf-8"):
            (new / CARD).write_text(card, "utf-8")
        (new / CONFIG).write_bytes(seal(content))


def _write_base(folder: Path, origin: Base) -> None:
    (folder / BASE).mkdir()  # if it stays empty, it takes away that of another model
    for name, content in origin.read().items():
        (folder / BASE / name).write_bytes(content)


def _content(encoder: EncoderCore, origin: Base, spec: Spec, state: Mapping[str, Tensor]) -> dict[str, Any]:
    """The configuration, but for the files."""
    model: nn.Module = encoder.model
    return {
        "format": FORMAT,
        "format_version": VERSION,
        "versions": _versions(),
        "base": origin.description,
        "towers": to_json(spec),
        "embedding": summary(encoder),
        "tensors": {name: write_tensor(tensor.dtype, tuple(tensor.shape)) for name, tensor in state.items()},
        "buffers": {
            name: write_tensor(buffer.dtype, tuple(buffer.shape))
            for name, buffer in model.named_buffers()
            if name not in state and buffer.is_floating_point()
        },
        "heads_left": {
            name: module.heads.tolist() for name, module in model.named_modules() if isinstance(module, HeadProjection)
        },
    }


def _versions() -> dict[str, str]:
    found = {"torch-pruning-mope": __version__}
    for name in _LIBRARIES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:  # an optional one
            continue
    return found


def _apart(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors that share no memory, as safetensors wants them."""
    seen: set[int] = set()
    apart: dict[str, Tensor] = {}
    for name, tensor in state.items():
        place = tensor.untyped_storage().data_ptr()
        apart[name] = tensor.clone() if place in seen and place else tensor.contiguous()
        seen.add(place)
    return apart


def _origin(encoder: EncoderCore, base: str | None, cache: str | None) -> tuple[Base, Spec]:
    """What the encoder's model was before pruning, and what is left of that."""
    own = spec_of(encoder)
    if base is None:
        return encoder.origin or _base.describe(None, encoder.model, cache), own
    source = base.removeprefix("mope:")
    folder = Path(source).expanduser()
    if source == base and not is_checkpoint(folder):
        return _base.describe(base, encoder.model, cache), own
    with open_checkpoint(fetch(source, cache_dir=cache)) as checkpoint:
        if encoder.origin is not None and encoder.origin.description == checkpoint.base.description:
            return encoder.origin, own  # its layers are numbered as in the base already
        return checkpoint.base, compose(own, checkpoint.spec)


def _check_base(encoder: EncoderCore, origin: Base, spec: Spec) -> Sizes:
    """Builds the base as loading will, and looks whether the encoder's model is what comes of it.

    Returns:
        How large it was.

    Raises:
        ModelLoadError: If it is not.
    """
    model: nn.Module = encoder.model
    with tempfile.TemporaryDirectory() as folder:
        _write_base(Path(folder), origin)
        whole = build(lambda: _base.build(origin.description, Path(folder)))
    twin, _ = wrap(whole, EncoderCore)
    before = Sizes.of(twin)
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    said: list[str] = []
    try:
        cut(twin, spec, shapes)
    except ModelLoadError as error:
        said = [str(error)]
    found = {name: tuple(tensor.shape) for name, tensor in twin.model.state_dict().items()}
    said += sorted(name for name in found.keys() | shapes.keys() if found.get(name) != shapes.get(name))[:3]
    ours, theirs = repr(model).splitlines(), repr(twin.model).splitlines()
    said += [own.strip() for own, other in zip(ours, theirs, strict=False) if own != other][:3]
    if said or len(ours) != len(theirs) or sizes(spec_of(twin)) != sizes(spec):
        raise ModelLoadError(
            f"base must be what the model was before it was pruned, found {origin.description.get('name')!r}, which differs: "
            f"{'; '.join(said) or 'other layers'}. Pass the name that it was loaded by."
        )
    return before
