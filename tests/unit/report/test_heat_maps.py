"""The heat maps."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from torch_pruning_mope import DualEncoder, Pairs, ScoreTable, score
from torch_pruning_mope.report import heat_maps
from torch_pruning_mope.report._heat_maps import score_norm, score_ticks, short_number

from ..models import clip, pairs_for


@pytest.fixture(scope="module")
def table() -> ScoreTable:
    encoder = DualEncoder(clip())
    return score(encoder, pairs_for(encoder.model, 12), metric="contrastive_loss", groups=4, progress=False)


def texts(axes: object) -> list[str]:
    return [text.get_text() for text in axes.texts]  # type: ignore[attr-defined]


def test_every_unit_has_a_cell_with_its_number_and_error(table: ScoreTable, tmp_path: Path) -> None:
    figure = heat_maps(table, tmp_path / "scores.png")
    panels = [axes for axes in figure.axes if texts(axes)]
    assert [axes.get_title() for axes in panels] == [
        "image tower: attention heads",
        "image tower: FFN neuron groups",
        "text tower: attention heads",
        "text tower: FFN neuron groups",
    ]
    assert sum(len(axes.texts) for axes in panels) == 2 * len(table.scores)
    first = table.of("head", "image")[0]
    assert texts(panels[0])[:2] == [short_number(100 * first.value), f"±{short_number(100 * first.stderr)}"]
    for axes in panels:
        low, high = axes.collections[0].get_clim()
        assert low == -high < 0
    labels = {axes.get_xlabel() for axes in figure.axes}
    assert "score: rise of the contrastive loss, in 0.01 nats" in labels
    assert Image.open(tmp_path / "scores.png").width > 1000


def test_recall_is_shown_in_points(encoder: DualEncoder, pairs: Pairs) -> None:
    table = score(encoder, pairs, metric="recall_mean", kinds=("head",), progress=False)
    labels = {axes.get_xlabel() for axes in heat_maps(table).axes}
    assert "score: drop in points of recall_mean" in labels


def test_metrics_without_standard_errors_and_scores_all_zero_are_drawn(table: ScoreTable) -> None:
    bare = replace(table, scores=tuple(replace(s, value=0.0, stderr=math.nan) for s in table.scores))
    figure = heat_maps(bare)
    assert set(texts(figure.axes[0])) == {"0.00"}
    figure.canvas.draw()


def test_an_empty_table_is_refused(table: ScoreTable) -> None:
    with pytest.raises(ValueError, match="table must hold scores of units of image or text; found none"):
        heat_maps(replace(table, scores=()))


def test_layers_have_a_panel_of_their_own(encoder: DualEncoder, pairs: Pairs) -> None:
    table = score(encoder, pairs, kinds=("block",), towers=("image",), progress=False)
    (panel,) = heat_maps(table).axes
    assert panel.get_title() == "image tower:\nwhole layers"
    assert texts(panel)[::2] == [short_number(100 * s.value) for s in table.scores]


def test_what_is_within_two_standard_errors_of_zero_is_hatched(table: ScoreTable) -> None:
    scores = tuple(
        replace(s, value=0.1, stderr=(0.049, 0.05, 0.051, math.nan)[place % 4]) for place, s in enumerate(table.scores)
    )
    panels = [axes for axes in heat_maps(replace(table, scores=scores)).axes if texts(axes)]
    hatched = {
        (place, patch.get_x() + 0.5, patch.get_y() + 0.5)
        for place, axes in enumerate(panels)
        for patch in axes.patches
        if patch.get_hatch()
    }
    places = [(tower, kind) for tower in ("image", "text") for kind in ("head", "neurons")]
    assert hatched == {
        (places.index((s.unit.tower, s.unit.kind)), s.unit.index, s.unit.layer) for s in scores if s.stderr >= 0.05
    }


def test_a_panel_of_thousands_of_columns_stays_a_picture(table: ScoreTable, tmp_path: Path) -> None:
    first = table.of("neurons")[0]
    wide = tuple(replace(first, unit=replace(first.unit, index=index)) for index in range(3000))
    heat_maps(replace(table, scores=wide), tmp_path / "wide.png")
    assert Image.open(tmp_path / "wide.png").width < 10_000


@pytest.mark.parametrize(
    ("value", "text"), [(45.2, "45"), (9.96, "10"), (9.94, "9.9"), (0.3, "0.30"), (-0.001, "0.00"), (-1.25, "−1.2")]
)
def test_numbers_are_short(value: float, text: str) -> None:
    assert short_number(value) == text


def test_ticks_lie_within_the_colours(table: ScoreTable) -> None:
    norm = score_norm(table.of("head"))
    assert norm(0.0) == pytest.approx(0.5)
    assert all(abs(tick) <= norm.vmax for tick in score_ticks(norm))
