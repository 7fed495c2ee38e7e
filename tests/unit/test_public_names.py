"""The names of the package: lazy, and the same for tools that read the imports."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import torch_pruning_mope as mope


def test_table_imports_and_all_agree() -> None:
    tree = ast.parse(Path(str(mope.__file__)).read_text(encoding="utf-8"))
    block = next(node for node in tree.body if isinstance(node, ast.If))
    read = {alias.name: node.module for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert read == mope._HOME_OF
    assert sorted(mope.__all__) == sorted([*read, "__version__"])
    assert set(mope.__all__) <= set(dir(mope))


def test_every_name_is_there() -> None:
    for name in mope.__all__:
        assert getattr(mope, name) is not None
    assert mope.metrics.resolve_metric("recall_mean").name == "recall_mean"
    with pytest.raises(AttributeError, match="has no attribute 'no_such_name'"):
        _ = mope.no_such_name  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("code", "absent"),
    [
        ("import torch_pruning_mope", {"torch", "numpy"}),
        ("import torch_pruning_mope.cli as cli; cli.app", {"torch", "numpy", "matplotlib", "open_clip"}),
        ("import torch_pruning_mope as mope; mope.score", {"matplotlib"}),
    ],
)
def test_what_an_import_leaves_out(code: str, absent: set[str]) -> None:
    """In a process of its own: this one has imported everything."""
    listing = f"{code}\nimport sys\nprint(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", listing], check=True, capture_output=True, text=True).stdout.split()
    assert absent.isdisjoint(loaded)
