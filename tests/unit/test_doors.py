"""Calls of libraries that open foreign things stand in few files, where the rules for them stand too."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import torch_pruning_mope

PACKAGE = Path(torch_pruning_mope.__file__).parent
FORBIDDEN = re.compile(
    r"(webdataset|wds)\..*(gopen|open|tarfile_samples|tarfile_to_samples|WebDataset|WebLoader)|.*\bgopen"
    r"|PIL\.Image\.open|subprocess(\..*)?|os\.(system|popen|exec\w*|spawn\w*|posix_spawn\w*)"
    r"|yaml\.(load|load_all|full_load|unsafe_load)|c?[pP]ickle(\..*)?|dill(\..*)?|joblib\.load|marshal\..*|shelve\..*"
    r"|json\.loads?"
    r"|torch\.load|torch\.jit\.load|torch\.hub\..*|numpy\.load|builtins\.(eval|exec)|urllib\.request\.(urlopen|urlretrieve)"
    r"|(?!.*\bDualEncoder\.).*\.from_pretrained|transformers\..*\bAuto(Tokenizer|Config|Processor|Model|ImageProcessor).*"
)
ALLOWED = {
    "_io/_json.py": {"json.loads"},
    "_io/_pictures.py": {"PIL.Image.open"},
    "_io/_urls.py": {"gopen", "urllib.request.urlopen"},
    "data/_emoji.py": {"PIL.Image.open"},  # of the package's own sprites
    "deploy/_stock.py": {"from_pretrained"},  # of what has just been written
    "loading/_loaded.py": {"pickle"},  # the type of an error
    "loading/_transformers.py": {"from_pretrained", "transformers"},
}
"""File: names that it may use, by their first or last part or whole."""


def uses(source: str) -> Iterator[str]:
    """Every forbidden name that code imports or uses, in full."""
    tree = ast.parse(source)
    aliases = {"eval": "builtins.eval", "exec": "builtins.exec"}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for name in node.names:
                aliases[name.asname or name.name.partition(".")[0]] = (
                    name.name if name.asname else name.name.partition(".")[0]
                )
        elif isinstance(node, ast.ImportFrom) and not node.level:
            for name in node.names:
                aliases[name.asname or name.name] = f"{node.module}.{name.name}"
    found = {*aliases.values()} - {"builtins.eval", "builtins.exec"}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute | ast.Name):
            parts, inner = [], node
            while isinstance(inner, ast.Attribute):
                parts.append(inner.attr)
                inner = inner.value
            first = aliases.get(inner.id, inner.id) if isinstance(inner, ast.Name) else ""
            found.add(".".join([first, *reversed(parts)]))
    yield from sorted(name for name in found if FORBIDDEN.fullmatch(name))


def test_foreign_things_are_opened_behind_their_doors() -> None:
    needed: dict[str, set[str]] = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        file = path.relative_to(PACKAGE).as_posix()
        for name in uses(path.read_text(encoding="utf-8")):
            by = {name, name.partition(".")[0], name.rpartition(".")[2]} & ALLOWED.get(file, set())
            assert by, f"{file} uses {name}: go through the door for it in _io or loading"
            needed.setdefault(file, set()).update(by)
    assert needed == ALLOWED, "what is allowed is no longer used; take it out"


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("import webdataset as w\nw.WebDataset(x)", "webdataset.WebDataset"),
        ("from webdataset import gopen", "webdataset.gopen"),
        ("from webdataset.tariterators import tarfile_samples as t\nt(x)", "webdataset.tariterators.tarfile_samples"),
        ("from PIL import Image as I\nI.open(x)", "PIL.Image.open"),
        ("import PIL.Image\nPIL.Image.open(x)", "PIL.Image.open"),
        ("from subprocess import run\nrun(x)", "subprocess.run"),
        ("import os as o\nf = o.system", "os.system"),
        ("import yaml\nyaml.load(x)", "yaml.load"),
        ("import torch as t\nt.load(x)", "torch.load"),
        ("import pickle", "pickle"),
        ("type(model).from_pretrained(x)", ".from_pretrained"),
        ("import transformers\ntransformers.AutoConfig.for_model(x)", "transformers.AutoConfig.for_model"),
        ("from transformers import AutoTokenizer as A", "transformers.AutoTokenizer"),
        ("eval(x)", "builtins.eval"),
    ],
)
def test_names_are_found_in_disguise(source: str, name: str) -> None:
    assert name in list(uses(source))


def test_names_of_others_are_let_be() -> None:
    harmless = "import yaml\nyaml.safe_load(x); path.open(); model.eval(); DualEncoder.from_pretrained(x)"
    assert list(uses(harmless)) == []
