"""The page: whole, true to the files, safe, and by itself."""

import json
import re
import shutil
import subprocess
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from PIL import Image

from torch_pruning_mope import Plan, ScoreTable
from torch_pruning_mope.report import ChangedExamples, write_report
from torch_pruning_mope.report._format import amount, change, milliseconds
from torch_pruning_mope.report._heat_maps import short_number
from torch_pruning_mope.report._kept import layers_of
from torch_pruning_mope.report._run import MAKERS
from torch_pruning_mope.report._theme import PALETTE
from torch_pruning_mope.report._write import _asset

from .conftest import ROWS, STEPS, row
from .page import Page

SECTIONS = ["numbers", "scores", "kept", "sizes", "recall", "training", "examples", "run"]
EMPTY = {"rows": [{"model": "m", "criterion": "MoPE", "stage": "pruned"}]}
HOSTILE = "</title><script>document.title='taken'</script><img src=x onerror=\"document.title='taken'\">$\\frac{"


@pytest.fixture(scope="module")
def written(full_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report(full_run, output=tmp_path_factory.mktemp("page") / "report.html", title="A small run")


@pytest.fixture(scope="module")
def html(written: Path) -> str:
    return written.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def page(html: str) -> Page:
    return Page(html)


def bare(folder: Path, **files: object) -> Path:
    """A run folder with an evaluation and nothing that is slow to draw."""
    folder.mkdir()
    content = {"evaluation.json": {"rows": ROWS}} | {name.replace("_json", ".json"): v for name, v in files.items()}
    for name, value in content.items():
        (folder / name).write_text(json.dumps(value))
    return folder


def test_every_section_is_there_and_has_its_content(page: Page) -> None:
    assert [section["id"] for section in page.all("section")] == SECTIONS
    assert "the run folder holds no" not in page.text
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    for _, attributes in page.elements:
        for name in ("aria-labelledby", "href", "xlink:href"):
            if name in attributes:
                assert attributes[name].startswith("data:") or attributes[name].removeprefix("#") in ids
        for reference in re.findall(r"url\(#([^)]+)\)", " ".join(attributes.values())):
            assert reference in ids


def test_nothing_is_fetched_and_nothing_runs(html: str, page: Page) -> None:
    (policy,) = [a["content"] for a in page.all("meta") if a.get("http-equiv") == "Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; style-src 'unsafe-inline'; img-src data:")
    assert not {"script", "link", "iframe", "object", "embed", "base", "form"} & {tag for tag, _ in page.elements}
    for tag, attributes in page.elements:
        assert not [name for name in attributes if name.startswith("on")]
        for name, value in attributes.items():
            if name in {"src", "href", "xlink:href", "srcset", "action"}:
                assert value.startswith(("#", "data:image/png;base64,")), (tag, name, value[:50])
    outside = set(re.findall(r"https?://[^\s\"'<)]+", html))
    assert outside <= {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}  # names of namespaces
    assert "@import" not in html


def test_figures_have_words_tables_have_headings_pictures_have_texts(page: Page) -> None:
    assert page.all("html")[0]["lang"] == "en"
    assert all(svg["role"] == "img" and len(svg["aria-label"]) > 20 for svg in page.all("svg"))
    assert all(image["alt"] for image in page.all("img"))
    assert {heading.get("scope") for heading in page.all("th")} == {"row", "col"}
    assert len(page.all("caption")) == len(page.tables) > 8
    headings = [int(tag[1]) for tag, _ in page.elements if re.fullmatch(r"h\d", tag)]
    assert headings[0] == 1
    assert all(after - before <= 1 for before, after in pairwise(headings))


def test_figures_lie_beside_the_page(written: Path, page: Page) -> None:
    figures = written.parent / "figures"
    names = {path.stem for path in figures.iterdir()}
    assert {path.name for path in figures.iterdir()} == {f"{name}.{kind}" for name in names for kind in ("png", "svg")}
    assert len(names) == len(page.all("svg"))
    assert names >= {
        "scores-image-head",
        "scores-text-neurons",
        "errors-text-block",
        "kept-image",
        "sizes",
        "recall",
        "training",
    }
    for path in figures.glob("*.png"):
        Image.open(path).verify()


def test_headline_numbers_are_those_of_the_evaluation(page: Page) -> None:
    text = " ".join(page.sections["numbers"].split())
    assert "50.0 k → to 30.0 k −40 %" in text
    assert "2.00 M → to 1.20 M −40 %" in text
    assert "12.5 ms → to 7.50 ms −40 %" in text
    assert "59.9 → to 58.8 −1.1 points" in text
    assert "pruned 48.8, distilled 58.8; pruned by Taylor: 35.2" in text


def test_tables_hold_the_numbers_of_the_files(full_run: Path, page: Page) -> None:
    names = {"none": "dense"}
    for entry in ROWS:
        label = names.get(entry["criterion"]) or f"{entry['criterion']}, {entry['stage']}"
        assert page.row(label, "image→text R@1") == f"{entry['i2t_r1']:.1f}"
        assert page.row(label, "text→image R@10") == f"{entry['t2i_r10']:.1f}"
        assert page.row(label, "parameters") == amount(entry["parameters"])
        assert page.row(label, "latency") == milliseconds(entry["latency_ms"])
    for step in STEPS:
        assert float(page.row(str(step.step), "loss")) == pytest.approx(step.loss, rel=1e-3)
        assert float(page.row(str(step.step), "contrast")) == pytest.approx(step.terms["contrast"], rel=1e-3)
        assert float(page.row(str(step.step), "learning rate")) == pytest.approx(step.learning_rate, rel=1e-2)


def test_every_score_is_in_a_table_with_its_error(full_run: Path, page: Page) -> None:
    table = ScoreTable.load(full_run / "scores.json")
    cells = [cell for rows in page.tables for cells in rows for cell in cells[1:]]
    for score in table.scores:
        value = f"{100 * score.value:.3g}".replace("-", "−")
        assert f"{value} ± {short_number(100 * score.stderr)}" in cells
    assert f"{len(table.scores)} units" in page.sections["scores"]


def test_what_was_kept_is_what_the_plan_keeps(full_run: Path, page: Page) -> None:
    plan = Plan.load(full_run / "plan.json")
    for layer in layers_of(plan, ScoreTable.load(full_run / "scores.json")):
        name = f"{layer.tower} {layer.index}"
        assert page.row(name, "heads kept") == f"{layer.heads.count(True)} of {len(layer.heads)}"
        assert page.row(name, "neurons kept") == f"{(layer.neurons or 0) - layer.removed_neurons} of {layer.neurons}"
    assert "parameters: 55%" in page.sections["kept"]
    before, after = (side["image"].parameters for side in (plan.before, plan.after))
    assert page.row("image parameters", "before") == amount(before)
    assert page.row("image parameters", "change") == change(before, after)


def test_examples_are_shown_with_pictures_and_counts(full_run: Path, page: Page) -> None:
    examples = ChangedExamples.load(full_run / "examples.json")
    pictures = {image["src"].removeprefix("data:image/png;base64,") for image in page.all("img")}
    text = page.sections["examples"]
    for example in examples:
        shown = [example.query, example.before, example.after]
        assert all(c.picture in pictures if c.picture else str(c.caption) in text for c in shown)
        assert f"{example.margin_after:+.3f}".replace("-", "−") in text
    assert f"lost {examples.total('worse')} that" in text
    assert text.count("of this") == len(examples)


def test_the_same_folder_makes_the_same_page_and_figures(full_run: Path, tmp_path: Path) -> None:
    folder = bare(tmp_path / "run", evaluation_json=EMPTY)
    table = ScoreTable.load(full_run / "scores.json")
    replace(table, scores=tuple(table.of("head", "text"))).save(folder / "scores.json")
    found = []
    for name in ("one", "two"):
        page = write_report(folder, output=tmp_path / name / "report.html")
        found.append({path.name: path.read_bytes() for path in page.parent.rglob("*.*")})
    assert found[0] == found[1]
    assert len(found[0]) == 5
    assert b"url(#scores-text-head-" in found[0]["report.html"]  # hatches, whose names could differ


def test_strings_from_outside_are_text(tmp_path: Path, full_run: Path) -> None:
    rows = [row("none", "dense"), row(HOSTILE, "pruned", model=HOSTILE), row("caf\u00e9 \ud800\x00\u202e", "pruned")]
    folder = bare(tmp_path / "run", evaluation_json={"rows": rows})
    content = json.loads((full_run / "examples.json").read_text())
    for example in content["examples"]:
        for name in ("query", "before", "after", "right"):
            example[name]["caption"] = None if example[name]["picture"] else HOSTILE
    (folder / "examples.json").write_text(json.dumps(content))
    (folder / "config.yaml").write_text(HOSTILE)
    step = {"step": 1, "loss": 1.0, "terms": {"<b>$x": 1.0}}
    (folder / "training.jsonl").write_text(json.dumps(step) + "\n")
    html = write_report(folder, title=HOSTILE).read_text(encoding="utf-8")
    page = Page(html)
    assert not {"script", "b"} & {tag for tag, _ in page.elements}
    assert page.text.count("<script>") > 5
    assert all(image["src"].startswith("data:") for image in page.all("img"))
    assert "café \ufffd\ufffd\ufffd" in page.text
    assert len(page.all("section")) == len(SECTIONS)


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    page = Page(write_report(bare(tmp_path / "run")).read_text(encoding="utf-8"))
    for name, maker in MAKERS.items():
        if name != "evaluation.json":
            assert f"the run folder holds no {name} (written by {maker})" in page.text
    assert "config.yaml" in page.sections["run"]
    assert len(page.all("svg")) == 2  # sizes and recall


def test_rows_without_numbers_make_no_figures(tmp_path: Path) -> None:
    page = Page(write_report(bare(tmp_path / "run", evaluation_json=EMPTY)).read_text(encoding="utf-8"))
    assert not page.all("svg")
    assert "holds none in its evaluation.json" in page.sections["recall"]


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
    assert len(page.all("svg")) == 3
    assert (page.row("dense", "top-1"), page.row("MoPE, pruned", "top-1")) == ("71.2", "66.0")
    assert "zero_shot, folder" in page.sections["recall"]
    assert "49.2 → to 49.2" in " ".join(page.sections["numbers"].split())  # of the first data with recalls
    assert [len(cells) for cells in page.tables[0]] == [4, 4, 4]  # sizes: each model once


def test_a_plan_alone_says_what_went(full_run: Path, tmp_path: Path) -> None:
    shutil.copy(full_run / "plan.json", tmp_path)
    page = Page(write_report(tmp_path).read_text(encoding="utf-8"))
    plan = Plan.load(tmp_path / "plan.json")
    assert "which the run folder does not hold" in page.sections["kept"]
    assert "planned; token embedding not counted" in page.sections["numbers"]
    assert amount(sum(side.parameters for side in plan.after.values())) in page.sections["numbers"]


def test_examples_given_are_kept_in_the_folder(full_run: Path, tmp_path: Path) -> None:
    examples = ChangedExamples.load(full_run / "examples.json")
    folder = bare(tmp_path / "run", evaluation_json=EMPTY)
    write_report(folder, examples=examples)
    assert ChangedExamples.load(folder / "examples.json") == examples


def test_a_damaged_file_leaves_the_page_before_in_place(tmp_path: Path) -> None:
    folder = bare(tmp_path / "run", evaluation_json=EMPTY)
    before = write_report(folder).read_bytes()
    (folder / "evaluation.json").write_text("{")
    with pytest.raises(ValueError, match=r"evaluation.json must be JSON"):
        write_report(folder)
    assert (folder / "report.html").read_bytes() == before


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
    assert {name: themes[0][name] for name in PALETTE} == PALETTE
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
