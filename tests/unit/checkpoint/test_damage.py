"""Two hundred damaged checkpoints and more: each is refused with a reason, none is executed, nothing is written."""

import hashlib
import json
import pickle
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from safetensors.torch import load_file, save_file

from torch_pruning_mope import DualEncoder, ModelLoadError

from .cases import CONFIG, prune, register, reseal

SEEDS = 23
HUGE: list[Any] = [10**30, 10**12, -1, 2.5, 1e308, "x", "../../etc/passwd", None, True, [], {}, [[[[[[]]]]]]]


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sound")
    small = {**CONFIG, "text_cfg": {**CONFIG["text_cfg"], "vocab_size": 60}}
    with pytest.MonkeyPatch.context() as patch:
        register(folder, patch, **{"Small-8": small})
        torch.manual_seed(0)
        encoder = DualEncoder(open_clip.create_model("Small-8").eval())
        prune(encoder)
        encoder.save_pretrained(folder / "saved", base="Small-8")
    DualEncoder.from_pretrained(folder / "saved")
    return folder / "saved"


def flip(path: Path, draw: random.Random) -> None:
    data = bytearray(path.read_bytes())
    data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    path.write_bytes(data)


def flipped_weights(folder: Path, draw: random.Random) -> None:
    flip(folder / "model.safetensors", draw)


def flipped_config(folder: Path, draw: random.Random) -> None:
    flip(folder / "config.json", draw)


def cut_off(folder: Path, draw: random.Random) -> None:
    path = folder / draw.choice(["model.safetensors", "config.json"])
    path.write_bytes(path.read_bytes()[: draw.randrange(path.stat().st_size)])


def swapped(folder: Path, draw: random.Random) -> None:
    path = folder / "model.safetensors"
    state = load_file(path)
    name, other = draw.choice(
        [
            (a, b)
            for a in state
            for b in state
            if a < b and state[a].shape == state[b].shape and state[a].ne(state[b]).any()
        ]
    )
    state[name], state[other] = state[other], state[name]
    save_file({key: value.clone() for key, value in state.items()}, path, metadata={"format": "pt"})


def other_tensors(folder: Path, draw: random.Random) -> None:
    """By somebody who knows all checksums."""
    path = folder / "model.safetensors"
    state = {name: tensor.clone() for name, tensor in load_file(path).items()}
    name = draw.choice([name for name, tensor in state.items() if tensor.ndim])
    match draw.randrange(5):
        case 0:
            del state[name]
        case 1:
            state["more"] = torch.ones(3)
        case 2:
            state[f"{name}_"] = state.pop(name)
        case 3:
            state[name] = state[name][:-1].clone()
        case _:
            state[name] = torch.cat([state[name]] * 2)
    save_file(state, path, metadata={"format": "pt"})

    def follow(content: dict[str, Any]) -> None:
        if draw.randrange(4):  # the list of tensors, too
            content["tensors"] = {name: " ".join(["float32", *map(str, t.shape)]) for name, t in state.items()}

    reseal(folder, follow)


def hostile(folder: Path, draw: random.Random) -> None:
    """Values that make no sense, under a checksum that does."""

    def spoil(content: dict[str, Any]) -> None:
        places = [(owner, key) for part in PARTS for owner, key in leaves(content[part])]
        places += [(content, key) for key in content if key != "checksum"]
        owner, key = draw.choice(places)
        owner[key] = draw.choice([value for value in HUGE if not same(value, owner[key])])

    reseal(folder, spoil)


PARTS = ("towers", "tensors", "buffers", "files", "embedding")


def same(value: Any, other: Any) -> bool:
    return type(value) is type(other) and value == other


def leaves(value: Any) -> list[tuple[Any, Any]]:
    """Where single values stand; which units were kept says nothing about the weights, unless it is nonsense."""
    found: list[tuple[Any, Any]] = []
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
        if isinstance(inner, dict | list):
            found += leaves(inner)
        elif not str(key).startswith("kept_"):
            found.append((value, key))
    return found


def outside(folder: Path, draw: random.Random) -> None:
    """Paths that lead out of the folder."""
    elsewhere = folder.parent / "elsewhere"
    shutil.copytree(folder, elsewhere)
    match draw.randrange(4):
        case 0:
            name = draw.choice(["model.safetensors", "config.json"])
            (folder / name).unlink()
            (folder / name).symlink_to(elsewhere / name)
        case 1:
            shutil.rmtree(folder / "base", ignore_errors=True)
            (elsewhere / "words").mkdir()
            (elsewhere / "words" / "vocab.txt").write_text("a")
            (folder / "base").symlink_to(elsewhere / "words")
            entry = {"bytes": 1, "sha256": hashlib.sha256(b"a").hexdigest()}
            reseal(folder, lambda content: content["files"].update({"base/vocab.txt": entry}))
        case 2:
            bad = [
                "../elsewhere/config.json",
                "/etc/passwd",
                "base/../../x",
                "base/..",
                "base\\x",
                "base/a/b",
                "~/x",
                "",
            ]
            reseal(folder, lambda content: content["files"].update({draw.choice(bad): {"bytes": 1, "sha256": ""}}))
        case _:

            def lead(content: dict[str, Any]) -> None:
                bad = ["hf-hub:org/name", "local-dir:/etc", "../x", "/etc/x", "a/b"]
                content["base"]["architecture"]["vision_cfg"]["timm_model_name"] = draw.choice(bad)

            reseal(folder, lead)


def no_json(folder: Path, draw: random.Random) -> None:
    path = folder / "config.json"
    text = path.read_text()
    first = text.index("{") + 1
    bad: list[bytes] = [
        b"",
        b"null",
        b"[]",
        b"\xff\xfe{}",
        b"[" * 10**5,
        b'{"a":' * 10**5,
        (text[:first] + '"format": "torch-pruning-mope",' + text[first:]).encode(),
        text.replace('"format_version": 1', '"format_version": 2').encode(),
        text.replace('"format_version": 1', '"format_version": NaN').encode(),
        text.replace('"format_version": 1', '"format_version": 1e999').encode(),
        text.replace('"format_version": 1', f'"format_version": 1{"0" * 5000}').encode(),
        text.replace('"format_version": 1', '"format_version": "1"').encode(),
        text.replace('"torch-pruning-mope"', '"other"', 1).encode(),
        text.replace(": ", ":", 1).encode(),
        (text + " ").encode(),
    ]
    path.write_bytes(draw.choice(bad))


def pickled(folder: Path, draw: random.Random) -> None:
    """What would run code in many a loader."""
    path = folder / "model.safetensors"
    bomb = pickle.dumps(Bomb(folder.parent / "ran"))
    path.write_bytes(bomb if draw.randrange(2) else len(bomb).to_bytes(8, "little") + bomb)
    if draw.randrange(2):
        torch.save({"weights": Bomb(folder.parent / "ran")}, path)
    reseal(folder)


class Bomb:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (Path.touch, (self.path,))


DAMAGES: list[Callable[[Path, random.Random], None]] = [
    flipped_weights,
    flipped_config,
    cut_off,
    swapped,
    other_tensors,
    hostile,
    outside,
    no_json,
    pickled,
]


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.parametrize("damage", DAMAGES)
def test_refused(damage: Callable[[Path, random.Random], None], sound: Path, tmp_path: Path) -> None:
    for seed in range(SEEDS):
        folder = tmp_path / str(seed) / "saved"
        shutil.copytree(sound, folder)
        damage(folder, random.Random(seed))
        before = tree(tmp_path)
        with pytest.raises(ModelLoadError) as refused:
            DualEncoder.from_pretrained(folder)
        assert len(str(refused.value)) > 30, seed
        assert tree(tmp_path) == before
        assert not (folder.parent / "ran").exists()


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda c: c.update(format_version=2), r"format version 1, found 2. Another version of torch-pruning-mope may"),
        (
            lambda c: c["base"].update(kind="pickle"),
            r"base.kind must be one of given, open_clip, transformers; found 'pickle'",
        ),
        (
            lambda c: c["base"]["architecture"]["vision_cfg"].update(layers=10**6),
            r"layers must be at most 512, found 1000000",
        ),
        (
            lambda c: c["base"]["architecture"]["text_cfg"].update(layers=3),
            r"base must have the layers that towers says",
        ),
        (lambda c: c["base"]["architecture"]["text_cfg"].update(width=4), r"must be part of its base's \[\d+, 4\]"),
        (lambda c: c["towers"]["image"]["layers"][0].update(number=9), r"number must be below 2, found 9"),
        (lambda c: c["towers"]["image"]["layers"].reverse(), r"layers must be in order, found the numbers \[1, 0\]"),
        (
            lambda c: c["towers"]["image"]["layers"][0].update(kept_heads=[[0, 10**9]]),
            r"must be an integer of 0 to 16777216",
        ),
        (
            lambda c: c["towers"]["image"]["layers"][0].update(kept_heads=[[0, 0], [0, 0]]),
            r"must be \d units in order, each",
        ),
        (
            lambda c: c["towers"]["text"]["layers"][0].update(neurons=1, kept_neurons=None),
            r"towers must be as wide as the tensors",
        ),
        (
            lambda c: c["tensors"].update({"ln_final.bias": "float16 8"}),
            r"tensors that config.json lists, .*ln_final.bias",
        ),
        (lambda c: c["files"].pop("model.safetensors"), r"files must name model.safetensors"),
        (lambda c: c["embedding"].update(context=9), r"embedding must be .*'context': 8.*found .*'context': 9"),
        (lambda c: c.update(more=1), r"must have the fields"),
        (lambda c: c.update(towers=10**12), r"towers must be an object of image, text; found 1000000000000"),
        (lambda c: c.update(versions={}), r"versions must be texts, that of torch-pruning-mope among them"),
        (lambda c: c.update(buffers={}), r"buffers must be \['attn_mask'\], found \[\]"),
        (lambda c: c.update(heads_left={"visual": [0]}), r"heads_left must be of \[\], found \['visual'\]"),
    ],
)
def test_reasons(spoil: Callable[[dict[str, Any]], None], reason: str, sound: Path, tmp_path: Path) -> None:
    folder = tmp_path / "saved"
    shutil.copytree(sound, folder)
    reseal(folder, spoil)
    with pytest.raises(ModelLoadError, match=reason):
        DualEncoder.from_pretrained(folder)


def test_the_checksum_is_of_content_and_form(sound: Path, tmp_path: Path) -> None:
    folder = tmp_path / "saved"
    shutil.copytree(sound, folder)
    content = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(content))
    with pytest.raises(ModelLoadError, match=r"config.json must be as it was written, found another checksum"):
        DualEncoder.from_pretrained(folder)
    text = (sound / "config.json").read_bytes().replace(b"\n", b"\r\n")
    (folder / "config.json").write_bytes(text)  # as git leaves it on Windows
    DualEncoder.from_pretrained(folder)
