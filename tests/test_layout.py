"""Imports inside the package go down the floors of the layout, and never in a circle."""

import ast
from pathlib import Path

import torch_pruning_mope as mope

PACKAGE = Path(mope.__file__).parent
FLOORS = (
    ("_version", "errors"),
    ("_registry", "_state", "_io", "_ridge", "_fingerprint"),
    ("data", "metrics", "surgery", "runtime"),
    ("towers", "loading"),
    ("encoder",),
    ("pruning", "cost", "checkpoint", "deploy"),
    ("scoring",),
    ("importance", "planning", "reconstruction", "distillation"),
    ("dual_encoder",),
    ("evaluation",),
    ("runs",),
    ("report", "demo"),
    ("cli",),
    ("__init__", "__main__"),
)
FLOOR = {name: floor for floor, names in enumerate(FLOORS) for name in names}
MAY_IMPORT_A_NEIGHBOUR = {("deploy", "checkpoint"), ("deploy", "cost")}


def _part(module: tuple[str, ...]) -> str:
    return module[0] if module else "__init__"


def _imports() -> list[tuple[str, str, str]]:
    """(file, its part, imported part), for every import of the package, lazy ones included."""
    found = []
    for file in sorted(PACKAGE.rglob("*.py")):
        own = file.relative_to(PACKAGE).with_suffix("").parts
        folder = own[:-1]
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
                assert not any(name.startswith("torch_pruning_mope") for name in names), f"{file}: absolute import"
            if not isinstance(node, ast.ImportFrom) or not node.level:
                continue
            base = folder[: len(folder) - node.level + 1]
            targets = [(*base, *node.module.split("."))] if node.module else [(*base, a.name) for a in node.names]
            part = "__init__" if own == ("__init__",) else _part(own)
            found += [(str(file.relative_to(PACKAGE)), part, _part(target)) for target in targets]
    return [(file, part, target) for file, part, target in found if part != target]


def test_every_part_stands_on_a_floor() -> None:
    parts = {path.stem for path in PACKAGE.glob("*.py")} | {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert parts == set(FLOOR)


def test_imports_go_down() -> None:
    bad = [
        f"{file} imports {target}"
        for file, part, target in _imports()
        if FLOOR[target] >= FLOOR[part] and (part, target) not in MAY_IMPORT_A_NEIGHBOUR
    ]
    assert bad == []


def test_few_names_at_the_top() -> None:
    assert len(mope.__all__) <= 50
