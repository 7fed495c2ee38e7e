"""The page: whole, true to the files, safe, and by itself."""

import base64
import json
import re
import shutil
import subprocess
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
from PIL import Image

from torch_pruning_mope import DualEncoder, Plan, ScoreTable, make_plan, score
from torch_pruning_mope.report import ChangedExamples, write_report
from torch_pruning_mope.report._read import MAKERS, read_run
from torch_pruning_mope.report._text import amount, change, milliseconds, short_number
from torch_pruning_mope.report._write import _asset, _notes

from ..models import clip, pairs_for
from .conftest import ROWS, STEPS, row
from .page import Page

SECTIONS = ["numbers", "scores", "kept", "sizes", "recall", "training", "examples", "run"]
EMPTY = {"rows": [{"model": "m", "criterion": "MoPE", "stage": "pruned"}]}
HOSTILE = "</title><script>document.title='taken'</script><img src=x onerror=\"document.title='taken'\">$\\frac{"
SVG = "data:image/svg+xml;base64,"


@pytest.fixture(scope="module")
def written(full_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report(full_run, output=tmp_path_factory.mktemp("page") / "report.html", title="A small run")


@pytest.fixture(scope="module")
def page(written: Path) -> Page:
    return Page(written.read_text(encoding="utf-8"))


def figures(page: Page) -> list[str]:
    """The figures' SVG, which must parse."""
    found = [image["src"].removeprefix(SVG) for image in page.all("img") if image["src"].startswith(SVG)]
    svgs = [base64.b64decode(content, validate=True).decode() for content in found]
    assert all(ET.fromstring(svg).tag == "{http://www.w3.org/2000/svg}svg" for svg in svgs)
    return svgs


def bare(folder: Path, **files: object) -> Path:
    """A run folder with an evaluation and nothing that is slow to draw."""
    folder.mkdir()
    content = {"evaluation.json": {"rows": ROWS}} | {name.replace("_json", ".json"): v for name, v in files.items()}
    for name, value in content.items():
        (folder / name).write_text(json.dumps(value))
    return folder


def test_every_section_is_there_with_words_headings_and_figures(full_run: Path, written: Path, page: Page) -> None:
    assert [section["id"] for section in page.all("section")] == SECTIONS
    assert "the run folder holds no" not in page.text
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert all(attributes["href"].removeprefix("#") in ids for attributes in page.all("a"))
    assert page.all("html")[0]["lang"] == "en"
    assert all(image["alt"] for image in page.all("img"))
    assert {heading.get("scope") for heading in page.all("th")} == {"row", "col"}
    assert len(page.all("caption")) == len(page.tables) > 8
    headings = [int(tag[1]) for tag, _ in page.elements if re.fullmatch(r"h\d", tag)]
    assert headings[0] == 1
    assert all(after - before <= 1 for before, after in pairwise(headings))
    assert [path.name for path in written.parent.iterdir()] == ["report.html"]  # and nothing that was not asked for
    beside = full_run / "figures"
    names = {path.stem for path in beside.iterdir()}
    assert len(figures(page)) == len(names)
    assert names >= {
        "scores-image-head",
        "scores-text-neurons",
        "scores-text-block",
        "kept-image",
        "recall",
        "training",
    }
    for name in names:
        Image.open(beside / f"{name}.png").verify()
        assert (beside / f"{name}.svg").read_text() in figures(page)


def test_nothing_is_fetched_and_nothing_runs(page: Page) -> None:
    (policy,) = [a["content"] for a in page.all("meta") if a.get("http-equiv") == "Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; style-src 'unsafe-inline'; img-src data:")
    assert not {"script", "link", "iframe", "object", "embed", "base", "form"} & {tag for tag, _ in page.elements}
    for tag, attributes in page.elements:
        assert not [name for name in attributes if name.startswith("on")]
        for name in {"src", "href", "srcset", "action"} & attributes.keys():
            assert attributes[name].startswith(("#", "data:image/png;base64,", SVG)), (tag, name)
    for svg in figures(page):
        assert set(re.findall(r'href="([^"#]{0,21})', svg)) <= {"", "data:image/png;base64"}  # a bar of colours


def test_numbers_are_those_of_the_files(full_run: Path, page: Page) -> None:
    text = " ".join(page.sections["numbers"].split())
    assert "50.0 k → to 30.0 k −40 %" in text
    assert "2.00 M → to 1.20 M −40 %" in text
    assert "12.5 ms → to 7.50 ms −40 %" in text
    assert "59.9 → to 58.8 −1.1 points" in text
    assert "pruned 48.8, distilled 58.8; pruned by Taylor: 35.2" in text
    for entry in ROWS:
        label = "dense" if entry["stage"] == "dense" else f"{entry['criterion']}, {entry['stage']}"
        assert page.row(label, "image→text R@1") == f"{entry['i2t_r1']:.1f}"
        assert page.row(label, "text→image R@10") == f"{entry['t2i_r10']:.1f}"
        assert page.row(label, "parameters") == amount(entry["parameters"])
        assert page.row(label, "latency") == milliseconds(entry["latency_ms"])
    table = ScoreTable.load(full_run / "scores.json")
    cells = [cell for rows in page.tables for cells in rows for cell in cells[1:]]
    for entry in table.scores:
        value = f"{100 * entry.value:.3g}".replace("-", "−")
        assert f"{value} ± {short_number(100 * entry.stderr)}" in cells
    assert f"{len(table.scores)} units" in page.sections["scores"]
    assert f"{len(STEPS)} steps" in page.sections["training"]
    assert "title: <b>&" in page.sections["run"]


def test_examples_are_shown_with_pictures_and_counts(full_run: Path, page: Page) -> None:
    examples = ChangedExamples.load(full_run / "examples.json")
    pictures = {image["src"].removeprefix("data:image/png;base64,") for image in page.all("img")}
    text = page.sections["examples"]
    for example in examples.examples:
        shown = [example.query, example.before, example.after]
        assert all(c.picture in pictures if c.picture else str(c.caption) in text for c in shown)
        assert f"{example.margin_after:+.3f}".replace("-", "−") in text
    assert f"lost {examples.total('worse')} that" in text
    assert text.count("of this") == len(examples.examples)


def test_the_same_folder_makes_the_same_page_and_figures(full_run: Path, tmp_path: Path) -> None:
    folder = bare(tmp_path / "run", evaluation_json=EMPTY)
    table = ScoreTable.load(full_run / "scores.json")
    replace(table, scores=tuple(table.of("head", "text"))).save(folder / "scores.json")
    found = []
    for name in ("one", "two"):
        page = write_report(folder, output=tmp_path / name / "report.html")
        files = [page, *(folder / "figures").iterdir()]
        found.append({path.name: path.read_bytes() for path in files})
    assert found[0] == found[1]
    assert len(found[0]) == 3


def test_strings_from_outside_are_text_and_paths_are_not_shown(tmp_path: Path, full_run: Path) -> None:
    rows = [row("none", "dense"), row(HOSTILE, "pruned", model=HOSTILE), row("caf\u00e9 \ud800\x00\u202e", "pruned")]
    rows = [entry | {"data": "/home/alice/private/pairs.csv"} for entry in rows]
    folder = bare(tmp_path / "run", evaluation_json={"rows": rows})
    content = json.loads((full_run / "examples.json").read_text())
    for example in content["examples"]:
        for name in ("query", "before", "after", "right"):
            example[name] |= {"picture": HOSTILE} if example[name]["picture"] else {"caption": HOSTILE}
    (folder / "examples.json").write_text(json.dumps(content))
    (folder / "config.yaml").write_text(f"data: /home/alice/private/pairs.csv\n{HOSTILE}")
    step = {"step": 1, "loss": 1.0, "terms": {"<b>$x\x00": 1.0}}
    (folder / "training.jsonl").write_text(json.dumps(step) + "\n")
    html = write_report(folder, title=HOSTILE).read_text(encoding="utf-8")
    page = Page(html)
    assert not {"script", "b"} & {tag for tag, _ in page.elements}
    assert page.text.count("<script>") > 5
    assert all(image["src"].startswith("data:") for image in page.all("img"))
    assert "café \ufffd\ufffd\ufffd" in page.text
    assert len(page.all("section")) == len(SECTIONS)
    for text in (html, *figures(page)):
        assert "alice" not in text
    assert "…/pairs.csv" in page.sections["run"]


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    page = Page(write_report(bare(tmp_path / "run")).read_text(encoding="utf-8"))
    for name, maker in MAKERS.items():
        if name != "evaluation.json":
            assert f"the run folder holds no {name} (written by {maker})" in page.text
    assert "config.yaml" in page.sections["run"]
    assert len(figures(page)) == 1  # recall
    empty = Page(write_report(bare(tmp_path / "empty", evaluation_json=EMPTY)).read_text(encoding="utf-8"))
    assert not figures(empty)
    assert "holds none in its evaluation.json" in empty.sections["recall"]


def test_several_data_have_a_figure_each_and_accuracies_a_table(tmp_path: Path) -> None:
    rows = [
        {**row(criterion, stage), "task": task, "data": data, **(more if task == "zero_shot" else {"i2t_r1": recall})}
        for task, data, recall in (("zero_shot", "folder", 0), ("retrieval", "coco", 40), ("retrieval", "flickr", 55))
        for criterion, stage, more in (
            ("dense", "dense", {"top1": 71.25, "top5": None}),
            ("MoPE", "pruned", {"top1": 66.0}),
        )
    ]
    for entry in rows[:2]:
        for name in [name for name in entry if "_r" in name]:
            del entry[name]
    page = Page(write_report(bare(tmp_path / "run", evaluation_json={"rows": rows})).read_text(encoding="utf-8"))
    assert len(figures(page)) == 2
    assert (page.row("dense", "top-1"), page.row("MoPE, pruned", "top-1")) == ("71.2", "66.0")
    assert "zero_shot, folder" in page.sections["recall"]
    assert "49.2 → to 49.2" in " ".join(page.sections["numbers"].split())  # of the first data with recalls
    assert [len(cells) for cells in page.tables[0]] == [4, 4, 4]  # sizes: each model once


def test_a_plan_alone_says_what_went(full_run: Path, tmp_path: Path) -> None:
    shutil.copy(full_run / "plan.json", tmp_path)
    page = Page(write_report(tmp_path).read_text(encoding="utf-8"))
    plan = Plan.load(tmp_path / "plan.json")
    for layer in plan.layers:
        assert page.row(f"{layer.tower} {layer.layer}", "neurons kept") == f"{layer.neurons_kept} of {layer.neurons}"
    assert "planned; token embedding not counted" in page.sections["numbers"]
    assert amount(sum(side.parameters for side in plan.after.values())) in page.sections["numbers"]


def test_stages_of_a_run_are_shown_and_their_layers_counted_from_the_dense_model(tmp_path: Path) -> None:
    encoder, plans = DualEncoder(clip()), []
    pairs, dense = pairs_for(encoder.model, 12), DualEncoder(clip())
    for number, budget in enumerate(("70%", "75%"), 1):
        folder = tmp_path / f"stage-{number}"
        folder.mkdir()
        table = score(encoder, pairs, groups=4, kinds=("block", "head", "neurons"), progress=False)
        table.save(folder / "scores.json")
        plans.append(make_plan(encoder, table, parameters=budget))
        plans[-1].save(folder / "plan.json")
        plans[-1].apply(encoder)
    run = read_run(tmp_path)
    assert (run.plans, run.missing) == (tuple(plans), ("evaluation.json", "training.jsonl", "examples.json"))
    assert run.scores == ScoreTable.load(tmp_path / "stage-1" / "scores.json")
    assert [(own.tower, own.layer) for own in run.layers] == [(layer.tower, layer.index) for layer in dense.layers]
    for own, layer in zip(run.layers, dense.layers, strict=True):
        assert (own.heads, own.neurons) == (layer.block.attention.num_units, layer.block.feed_forward.num_units)
    left = [
        tuple(0 if part is None else part.num_units for part in (layer.block.attention, layer.block.feed_forward))
        for layer in encoder.layers
    ]
    assert [(own.heads_kept, own.neurons_kept) for own in run.layers if not own.removed] == left
    page = Page(write_report(tmp_path).read_text(encoding="utf-8"))
    for number, plan in enumerate(plans, 1):
        after = sum(side.parameters for side in plan.after.values())
        assert page.row(f"stage {number}", "parameters") == amount(after)
    assert f"{len(run.scores.scores)} units" in page.sections["scores"]
    assert "of the first stage" in page.sections["scores"]


def test_scores_of_other_weights_than_the_plan_are_noted(run: Path) -> None:
    content = json.loads((run / "scores.json").read_text())
    assert _notes(read_run(run)) == []
    (run / "scores.json").write_text(json.dumps(content | {"weights": "0" * 64}))
    assert "of other weights than the scores" in _notes(read_run(run))[0]


def test_examples_given_are_kept_and_a_damaged_file_leaves_the_page_before(full_run: Path, tmp_path: Path) -> None:
    examples = ChangedExamples.load(full_run / "examples.json")
    folder = bare(tmp_path / "run", evaluation_json=EMPTY)
    before = write_report(folder, examples=examples).read_bytes()
    assert ChangedExamples.load(folder / "examples.json") == examples
    (folder / "evaluation.json").write_text("{")
    with pytest.raises(ValueError, match=r"evaluation.json must be written by save_evaluation"):
        write_report(folder)
    assert (folder / "report.html").read_bytes() == before


def test_numbers_in_words() -> None:
    assert [amount(value) for value in (950, 3_770_000, 99_960)] == ["950", "3.77 M", "100 k"]
    assert [milliseconds(value) for value in (7.5, 14.23, 2500)] == ["7.50 ms", "14.2 ms", "2.50 s"]
    assert [change(*values) for values in ((10, 6), (10, 12), (0, 1))] == ["−40 %", "+20 %", ""]


def luminance(colour: str) -> float:
    digits = colour.removeprefix("#")
    digits = digits if len(digits) == 6 else "".join(2 * digit for digit in digits)
    channels = [int(digits[place : place + 2], 16) / 255 for place in (0, 2, 4)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def test_contrast_is_that_of_wcag_in_light_dark_and_print() -> None:
    themes = [
        dict(re.findall(r"--(\w+): (#[0-9a-f]+);", block))
        for block in re.findall(r":root \{([^}]*)\}", _asset("report.css"))
    ]
    assert len(themes) == 3
    for theme in themes:
        for ground in (theme["page"], theme["panel"]):
            for name in ("ink", "muted", "blue"):
                assert contrast(theme[name], ground) >= 4.5, (name, theme)
            for name in ("grey", "orange"):
                assert contrast(theme[name], ground) >= 3, (name, theme)


@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs Chromium")
def test_a_browser_shows_it_in_light_and_dark_and_runs_nothing(tmp_path: Path) -> None:
    rows = [row("none", "dense"), row(HOSTILE, "pruned")]
    target = write_report(bare(tmp_path / "run", evaluation_json={"rows": rows}), title=f"Safe {HOSTILE}")
    options = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"

    def chromium(*more: str) -> str:
        command = ["chromium", *options.split(), f"--user-data-dir={tmp_path / 'profile'}", *more, target.as_uri()]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout

    corners = []
    for name, scheme in (("dark", 0), ("light", 1)):
        chromium(
            f"--blink-settings=preferredColorScheme={scheme}",
            f"--screenshot={tmp_path / name}.png",
            "--window-size=600,800",
        )
        corners.append(Image.open(tmp_path / f"{name}.png").convert("RGB").getpixel((3, 3)))
    assert corners == [(0x15, 0x18, 0x1C), (0xFD, 0xFD, 0xFE)]
    shown = Page(chromium("--dump-dom"))
    assert shown.text.count("Safe </title>") == 2  # the title and the heading
    assert "script" not in {tag for tag, _ in shown.elements}
