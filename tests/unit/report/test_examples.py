"""Examples on disk: written, read back, and refused when damaged."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from torch_pruning_mope.report import ChangedExamples


def test_they_read_back(full_run: Path, tmp_path: Path) -> None:
    found = ChangedExamples.load(full_run / "examples.json")
    found.save(tmp_path / "again.json")
    assert ChangedExamples.load(tmp_path / "again.json") == found
    assert len(found) == len(list(found)) > 3
    assert found[0] == found.examples[0]
    assert not list(tmp_path.glob("*.part"))


def first(content: dict[str, Any]) -> dict[str, Any]:
    return content["examples"][0]  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda c: c.update(format=2), "format must be 1; found 2"),
        (lambda c: c.pop("counts"), "KeyError"),
        (lambda c: first(c).update(outcome="<b>"), "unknown direction or outcome: 'i2t', '<b>'"),
        (lambda c: first(c).update(margin_after=float("nan")), "margins must be finite"),
        (lambda c: first(c)["query"].update(picture="x\" onerror='alert(1)'"), "a picture must be in base64"),
        (lambda c: first(c)["query"].update(picture="R0lGODlh"), "a picture must be a PNG file"),
        (lambda c: first(c).update(query={}), "KeyError('caption')"),
        (lambda c: c["counts"]["i2t"].update(worse="many"), "invalid literal"),
    ],
)
def test_damage_is_refused(run: Path, damage: Callable[[dict[str, Any]], object], message: str) -> None:
    path = run / "examples.json"
    content = json.loads(path.read_text())
    damage(content)
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"path must be of examples written by ChangedExamples.save") as caught:
        ChangedExamples.load(path)
    assert message in str(caught.value)


@pytest.mark.parametrize("text", ["", "[1]", '"x"', "{", "\x00"])
def test_other_files_are_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(ValueError, match="Delete it, or find the examples again with changed_examples"):
        ChangedExamples.load(tmp_path / "x.json")
