"""Damaged or made-up settings, score tables and plans raise documented errors alone; MOPE_FUZZ says how many are tried."""

import copy
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import torch_pruning_mope as mope
from tests.unit.fuzz import damaged, some
from tests.unit.models import clip, pairs_for
from torch_pruning_mope._io import parse_json
from torch_pruning_mope.planning import Plan
from torch_pruning_mope.runs._settings import read_settings

SETTINGS = (
    "versions: {torch: 2.14.1}\nscore: {model: tiny, data: ./pairs.csv, pairs: 16, kind: [head]}\nprune: {ridge: 0.1}\n"
)
value = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """A score table and a plan, as they are written."""
    folder = tmp_path_factory.mktemp("whole")
    encoder = mope.DualEncoder(clip())
    table = mope.score(encoder, pairs_for(encoder.model, 4), kinds=("head",), progress=False)
    table.save(folder / "scores.json")
    (folder / "plan.json").write_text(mope.make_plan(encoder, table, parameters="99%").to_json())
    return {name: (folder / name).read_bytes() for name in ("scores.json", "plan.json")}


def replaced(draw: Any, content: Any) -> Any:
    """One value somewhere in it is another, or has gone."""
    content = copy.deepcopy(content)
    place = content
    while True:
        keys = list(place) if isinstance(place, dict) else list(range(len(place)))
        if not keys:
            return content
        key = draw(st.sampled_from(keys))
        if isinstance(place[key], dict | list) and place[key] and draw(st.booleans()):
            place = place[key]
        elif draw(st.booleans()):
            place[key] = draw(value)
            return content
        else:
            del place[key]
            return content


@some
@given(data=st.data())
def test_settings(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    file = tmp_path_factory.getbasetemp() / "config.yaml"
    file.write_bytes(damaged(data.draw, SETTINGS.encode()))
    try:
        read_settings(file)
    except ValueError as error:
        str(error).encode()


@some
@given(data=st.data(), name=st.sampled_from(["scores.json", "plan.json"]), whole=st.booleans())
def test_tables_and_plans(
    files: dict[str, bytes], tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, name: str, whole: bool
) -> None:
    file = tmp_path_factory.getbasetemp() / name
    if whole:
        file.write_bytes(damaged(data.draw, files[name]))
    else:
        file.write_text(json.dumps(replaced(data.draw, parse_json(files[name]))))
    try:
        found = (mope.ScoreTable if name == "scores.json" else Plan).load(file)
        str(found).encode()
    except ValueError as error:
        str(error).encode()
