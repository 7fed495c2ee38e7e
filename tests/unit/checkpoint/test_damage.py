"""Damaged and hostile checkpoints: each is refused with a reason, soon, in little memory; none is executed, nothing written."""

import contextlib
import json
import os
import pickle
import random
import resource
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from torch_pruning_mope import DualEncoder
from torch_pruning_mope.checkpoint import is_checkpoint
from torch_pruning_mope.errors import ModelLoadError

from .cases import CONFIG, prune, register, reseal

HUGE: list[Any] = [
    10**30,
    10**12,
    -1,
    2.5,
    1e308,
    float("nan"),
    "x",
    "../../etc/passwd",
    None,
    True,
    [],
    {},
    [[[[[[]]]]]],
]


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


@contextmanager
def within(seconds: float = 2.0, megabytes: int = 500) -> Iterator[None]:
    """Fails if the body takes more processor time or memory, or waits for long."""

    def give_up(*_: Any) -> None:
        raise AssertionError("it waits")

    memory, begin = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    before = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(120)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
    assert time.process_time() - begin < seconds
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory < megabytes * 1024


def flip(path: Path, draw: random.Random) -> None:
    data = bytearray(path.read_bytes())
    data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    path.write_bytes(data)


def flipped_weights(folder: Path, draw: random.Random) -> None:
    flip(folder / "model.safetensors", draw)


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
    """Values that make no sense, with right digests."""

    def spoil(content: dict[str, Any]) -> None:
        parts = [content["towers"], content["sha256"], content["base"]["architecture"]]
        places = [(owner, key) for part in parts for owner, key in leaves(part)]
        places += [(content, key) for key in content if key != "versions"]
        owner, key = draw.choice(places)
        owner[key] = draw.choice([value for value in HUGE if not same(value, owner[key])])

    reseal(folder, spoil)


def same(value: Any, other: Any) -> bool:
    return type(value) is type(other) and value == other


def leaves(value: Any) -> list[tuple[Any, Any]]:
    """Where single values stand."""
    found: list[tuple[Any, Any]] = []
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
        found += leaves(inner) if isinstance(inner, dict | list) else [(value, key)]
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
            reseal(folder)
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
            reseal(folder, lambda content: content["sha256"].update({draw.choice(bad): "0" * 64}))
        case _:

            def lead(content: dict[str, Any]) -> None:
                bad = ["hf-hub:org/name", "local-dir:/etc", "../x", "/etc/x", "a/b"]
                content["base"]["architecture"]["vision_cfg"]["timm_model_name"] = draw.choice(bad)

            reseal(folder, lead)


def no_json(folder: Path, draw: random.Random) -> None:
    path = folder / "config.json"
    text = path.read_text()
    bad: list[bytes] = [
        b"",
        b"null",
        b"[]",
        b"\xff\xfe{}",
        b"[" * 10**5,
        b'{"a":' * 10**5,
        text.replace('"format_version": 2', '"format_version": 1').encode(),
        text.replace('"format_version": 2', '"format_version": 3').encode(),
        text.replace('"format_version": 2', '"format_version": NaN').encode(),
        text.replace('"format_version": 2', '"format_version": 1e999').encode(),
        text.replace('"format_version": 2', f'"format_version": 1{"0" * 5000}').encode(),
        text.replace('"format_version": 2', '"format_version": "2"').encode(),
        text.replace('"torch-pruning-mope"', '"other"', 1).encode(),
        text.replace('": ', '"', 1).encode(),
        (text + "}").encode(),
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


DAMAGES: dict[Callable[[Path, random.Random], None], int] = {
    flipped_weights: 60,
    cut_off: 50,
    swapped: 20,
    other_tensors: 40,
    no_json: 30,
    hostile: 110,
    outside: 30,
    pickled: 10,
}
"""How many of each: 200 damaged, 150 hostile."""


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.parametrize("damage", DAMAGES)
def test_refused(damage: Callable[[Path, random.Random], None], sound: Path, tmp_path: Path) -> None:
    for seed in range(DAMAGES[damage]):
        folder = tmp_path / str(seed) / "saved"
        shutil.copytree(sound, folder)
        damage(folder, random.Random(seed))
        before = tree(folder.parent)
        with within(), pytest.raises(ModelLoadError) as refused:
            DualEncoder.from_pretrained(folder)
        assert len(str(refused.value)) > 30, seed
        assert tree(folder.parent) == before
        assert not (folder.parent / "ran").exists()


def size(tower: str, **values: Any) -> Callable[[Path], None]:
    """An architecture of other sizes."""
    return lambda folder: reseal(folder, lambda content: content["base"]["architecture"][tower].update(values))


def long(text: str) -> Callable[[Path], None]:
    """A configuration of a megabyte or more."""

    def write(folder: Path) -> None:
        content = (folder / "config.json").read_text()
        (folder / "config.json").write_text(content.replace('"heads_left": {}', f'"heads_left": {text}', 1))

    return write


def fifo(name: str) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        (folder / name).unlink()
        os.mkfifo(folder / name)

    return make


def header(folder: Path) -> None:
    """Weights with a header of 60 MB."""
    entry = b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"b":"' + b" " * 6 * 10**7 + b'"}'
    (folder / "model.safetensors").write_bytes(len(entry).to_bytes(8, "little") + entry + b"0000")
    reseal(folder)


BOMBS: dict[str, Callable[[Path], None]] = {
    "context": size("text_cfg", context_length=4096, vocab_size=2**20),
    "mask": size("text_cfg", context_length=32768),
    "positions": size("vision_cfg", image_size=2**15, patch_size=1),
    "wide": size("vision_cfg", width=2**18, head_width=2**18),
    "wider": size("text_cfg", width=2**23, heads=1),
    "deep": size("vision_cfg", layers=10**6),
    "stages": size("vision_cfg", layers=[100] * 10**5),
    "words": size("text_cfg", vocab_size=2**24),
    "units": lambda folder: reseal(
        folder, lambda content: content["towers"]["image"]["layers"][0].update(neurons=f"0-{2**20 - 1}")
    ),
    "spaces": long('{"a": [' + "[ " * 10**5 + " " * 10**6 + "]}"),
    "rows": long('{"a": [' + "[ 1 2, " * 10**5 + "}"),
    "lists": long('{"a": [' + "[0],\n" * 10**6 + "[0]]}"),
    "vast": long('{"a": "' + "x" * 10**7 + '"}'),
    "fifo of the configuration": fifo("config.json"),
    "fifo of the weights": fifo("model.safetensors"),
    "header": header,
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_bombs(bomb: str, sound: Path, tmp_path: Path) -> None:
    folder = tmp_path / "saved"
    shutil.copytree(sound, folder)
    BOMBS[bomb](folder)
    with within():
        is_checkpoint(folder)
        with pytest.raises(ModelLoadError):
            DualEncoder.from_pretrained(folder)


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda c: c.update(format_version=1), r"version 2; found 1. Save it again with this version"),
        (lambda c: c.update(format_version=3), r"version 2; found 3. .*install the one that wrote it"),
        (lambda c: c["base"].update(kind="pickle"), r"one of given, open_clip, transformers; found 'pickle'"),
        (lambda c: c["base"]["architecture"]["vision_cfg"].update(layers=10**6), r"at most 128; found 1000000"),
        (lambda c: c["base"]["architecture"]["text_cfg"].update(layers=3), r"the layers that towers says"),
        (lambda c: c["base"]["architecture"]["text_cfg"].update(width=4), r"must be part of its base's \[\d+, 4\]"),
        (lambda c: c["base"]["architecture"]["text_cfg"].update(hf_tokenizer_kwargs={}), r"libraries build and run"),
        (
            lambda c: c["towers"]["image"]["layers"][0].update(number=9),
            r"in order, of the 2 of the base; found the numbers \[(9, 1|0, 9)\]",
        ),
        (lambda c: c["towers"]["image"]["layers"].reverse(), r"in order, .* found the numbers \[1, 0\]"),
        (lambda c: c["towers"]["image"]["layers"][0].update(heads="0-9999999"), r"must be below 1048576, in order"),
        (lambda c: c["towers"]["image"]["layers"][0].update(heads="0,0"), r"in order, each once; found '0' in '0,0'"),
        (lambda c: c["towers"]["image"]["layers"][0].update(heads="0; 1"), r"ranges of numbers such as '0-5,8'"),
        (lambda c: c["towers"]["image"]["layers"][0].update(heads="7"), r"must (be of the 3|have the heads)"),
        (lambda c: c["towers"]["text"]["layers"][0].update(neurons=1), r"towers must have the heads, neurons and"),
        (lambda c: c["sha256"].pop("model.safetensors"), r"sha256 must name model.safetensors"),
        (lambda c: c.update(more=1), r"must have format, .* alone; found \['more'\]"),
        (lambda c: c.update(towers=10**12), r"towers must be .*; found '1000000000000'"),
        (lambda c: c.update(buffers={"attn_mask": "int8"}), r"buffers.attn_mask must be .*bfloat16.*found 'int8'"),
        (lambda c: c.update(buffers={"none": "float16"}), r"buffers must be of \['attn_mask'\]; found \['none'\]"),
        (lambda c: c.update(heads_left={"visual": "0"}), r"heads_left must be of \[\]; found \['visual'\]"),
    ],
)
def test_reasons(spoil: Callable[[dict[str, Any]], None], reason: str, sound: Path, tmp_path: Path) -> None:
    folder = tmp_path / "saved"
    shutil.copytree(sound, folder)
    reseal(folder, spoil)
    with pytest.raises(ModelLoadError, match=reason):
        DualEncoder.from_pretrained(folder)


def test_the_configuration_may_be_edited(sound: Path, tmp_path: Path) -> None:
    folder = tmp_path / "saved"
    shutil.copytree(sound, folder)
    content = json.loads((folder / "config.json").read_text())
    content["base"]["name"] = "mine"
    (folder / "config.json").write_text(json.dumps(content, indent=4, sort_keys=True).replace("\n", "\r\n"))
    assert is_checkpoint(folder)
    loaded, original = DualEncoder.from_pretrained(folder), DualEncoder.from_pretrained(sound)
    assert loaded.removed == original.removed


values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-2, 2**70)
    | st.floats()
    | st.text(max_size=5)
    | st.sampled_from(["0-3", "x:y"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=8,
)


def places(value: Any) -> list[tuple[Any, Any]]:
    """Where values stand, at every depth."""
    found: list[tuple[Any, Any]] = []
    if isinstance(value, dict | list):
        for key in value if isinstance(value, dict) else range(len(value)):
            found += [(value, key), *places(value[key])]
    return found


@settings(max_examples=int(os.environ.get("MOPE_FUZZ", "60")), derandomize=True, deadline=None, database=None)
@given(st.data())
def test_any_configuration_loads_or_is_refused(sound: Path, data: st.DataObject) -> None:
    """One to three values of any kind anywhere, or bytes at the end: no other error than the one that is documented."""
    content = json.loads((sound / "config.json").read_text())
    for _ in range(data.draw(st.integers(1, 3))):
        owner, key = data.draw(st.sampled_from(places(content)))
        owner[key] = data.draw(values)
    folder = sound.parent / "fuzzed"
    folder.mkdir(exist_ok=True)
    shutil.copyfile(sound / "model.safetensors", folder / "model.safetensors")
    text = json.dumps(content).encode("utf-8", "surrogatepass")
    (folder / "config.json").write_bytes(text + data.draw(st.sampled_from([b"", b"", b"", b"\xff", b"]"])))
    with within(), contextlib.suppress(ModelLoadError):
        DualEncoder.from_pretrained(folder)
