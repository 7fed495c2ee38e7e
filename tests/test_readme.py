"""Every snippet of the documents runs, and every table is the measured one."""

import importlib
import json
import re
import shlex
import statistics
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from typer.testing import CliRunner

import torch_pruning_mope as mope
from tests.unit import zoo
from torch_pruning_mope.cli import app
from torch_pruning_mope.evaluation import families_markdown, load_families

ROOT = Path(__file__).parent.parent
NAMES = ("README.md", "examples/README.md", "benchmarks/README.md")
DOCUMENTS = {name: (ROOT / name).read_text(encoding="utf-8") for name in NAMES if (ROOT / name).exists()}
SMALL = {
    "score": ("--pairs", "16", "--groups", "2", "--kind", "head", "--kind", "neurons", "--quiet"),
    "compress": ("--pairs", "16", "--groups", "1", "--stages", "1", "--no-time", "--test-pairs", "16", "--quiet"),
    "prune": ("--quiet",),
    "reconstruct": ("--quiet",),
    "distill": ("--steps", "1", "--batch-size", "8", "--pairs", "16", "--quiet"),
    "evaluate": ("--pairs", "16", "--no-latency", "--quiet"),
    "report": ("--pairs", "16", "--examples", "2"),
}
"""Options that make a command of the story small; the last of an option given twice counts."""


def snippets(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)


def between(marker: str) -> str:
    """What a document has between two markers."""
    (text,) = [text for text in DOCUMENTS.values() if f"<!-- {marker} -->" in text]
    return text.partition(f"<!-- {marker} -->\n")[2].partition(f"\n<!-- /{marker} -->")[0]


@pytest.mark.usefixtures("_shallow")
@pytest.mark.parametrize("name", [name for name, text in DOCUMENTS.items() if snippets(text, "python")])
def test_python_snippets_run_in_order(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = mope.emoji_pairs
    monkeypatch.setattr(mope, "emoji_pairs", lambda split, size=1000, seed=0: original(split, min(size, 16), seed))
    monkeypatch.chdir(tmp_path)
    rows = ["filepath,title"]
    for number, (pixels, caption) in enumerate(mope.emoji_scenes("calibration", 40)):
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
        rows.append(f"{number}.png,{caption}")
    (tmp_path / "pairs.csv").write_text("\n".join(rows))
    namespace: dict[str, Any] = {}
    for block in snippets(DOCUMENTS[name], "python"):
        exec(compile(block, name, "exec"), namespace)
    for own in {"MyClip", "MyFastClip"} & namespace.keys():
        wrapped, pairs = mope.DualEncoder(namespace[own]()), namespace["pairs"]
        prefix = mope.score(wrapped, pairs, metric="contrastive_loss", groups=2, progress=False)
        plain = mope.score(wrapped, pairs, metric="contrastive_loss", groups=2, progress=False, engine="plain")
        assert [s.loss for s in prefix.scores] == pytest.approx([s.loss for s in plain.scores], abs=1e-5)
        importance = mope.MoPEImportance(wrapped, pairs, progress=False)
        removed = mope.prune(wrapped, importance, head_ratio=0.5, ffn_ratio=0.5)
        assert removed.heads == 8
        assert removed.neurons == 256


def test_there_are_enough_snippets() -> None:
    assert sum(len(snippets(text, "python")) for text in DOCUMENTS.values()) >= 10


def test_the_table_of_families_is_the_measured_one() -> None:
    """`python benchmarks/families.py` measures; this writes nothing."""
    assert between("families") == families_markdown()
    rows = load_families()
    assert [row["family"] for row in rows] == list(zoo.FAMILIES)
    for row in rows:
        differences = [value for value in row.values() if isinstance(value, float)]
        assert len(differences) == 5
        assert max(differences) <= 1e-5
        assert row["swapped = original"] <= 1e-6


def test_messages_that_are_explained_are_messages_of_the_package() -> None:
    tables = [text.partition("| message | what is behind it |")[2] for text in DOCUMENTS.values()]
    table = "".join(text.partition("\n\n")[0] for text in tables)
    messages = re.findall(r"^\| `([^`]+)` \|", table, flags=re.MULTILINE)
    source = "".join(path.read_text(encoding="utf-8") for path in Path(str(mope.__file__)).parent.rglob("*.py"))
    joined = re.sub(r'"\s*\n\s*f?"', "", source)  # messages are written over several lines
    assert [message for message in messages if message not in joined] == []


def test_the_table_of_compression_is_the_measured_one() -> None:
    """`python benchmarks/compression.py` measures; this writes nothing."""
    file = ROOT / "benchmarks" / "figures" / "compression.json"
    rows = [row for row in json.loads(file.read_text())["grid"] if row["stage"] == "trained"]
    mean = {(row["criterion"], row["budget"], row["seed"]): (row["i2t_r1"] + row["t2i_r1"]) / 2 for row in rows}
    shown = between("compression")
    budgets = [float(share) / 100 for share in re.findall(r"(\d+)% kept", shown)]
    assert len(budgets) >= 4
    for criterion in ("MoPE", "Hessian", "Taylor", "L1", "random", "MoPE, a head in each layer"):
        cells = re.search(rf"^\| {criterion} \|(.*)\|$", shown, flags=re.MULTILINE)
        assert cells is not None
        for budget, cell in zip(budgets, cells[1].split("|"), strict=True):
            if cell.strip() == "–":
                assert (criterion, budget, 0) not in mean
                continue
            seeds = [key[2] for key in mean if key[:2] == (criterion, budget)]
            share = statistics.mean(100 * mean[criterion, budget, seed] / mean["dense", 1.0, seed] for seed in seeds)
            assert cell.partition("→")[2].split()[0] == f"{share:.1f}"


def test_the_tables_of_reconstruction_are_the_measured_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    report = importlib.import_module("reconstruction").report
    for name, file in (("reconstruction", "reconstruction"), ("siglip", "reconstruction_siglip")):
        found = json.loads((ROOT / "benchmarks" / "figures" / f"{file}.json").read_text())
        assert between(name) == report(found)
    found = json.loads((ROOT / "benchmarks" / "figures" / "depth.json").read_text())
    assert between("depth") == importlib.import_module("depth").report(found["rows"])


@pytest.mark.usefixtures("_shallow")
def test_the_story_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its commands one after another, small; exports have tests of their own."""
    monkeypatch.chdir(tmp_path)
    lines = [line[2:] for line in between("story").splitlines() if line.startswith("$ mope ")]
    assert len(lines) >= 4
    for line in lines:
        _, command, *arguments = shlex.split(line)
        if command == "export":
            continue
        small = SMALL.get(command, ())
        result = CliRunner().invoke(app, [command, *arguments, *small])
        assert result.exit_code == 0, f"{line}\n{result.output[-500:]}\n{result.stderr[-500:]}"
    shown = between("story")
    runs = list(tmp_path.rglob("config.yaml"))
    assert runs
    for name in ("pruned", "evaluation.json", "report.html"):
        assert (runs[0].parent / name).exists()
        assert name in shown


def test_shell_snippets_are_commands_that_exist() -> None:
    text = "\n".join(DOCUMENTS.values())
    lines = [line for block in snippets(text, "bash") for line in block.splitlines()]
    lines += [line[2:] for block in snippets(text, "console") for line in block.splitlines() if line[:6] == "$ mope"]
    assert any(line.startswith("pip install . && mope demo") for line in lines)
    assert 'pip install -e ".[dev]" && pytest' in lines
    for command in (part.strip() for line in lines for part in line.partition("  #")[0].split("&&")):
        program, *arguments = shlex.split(command)
        if program == "torchrun" and "-m" in arguments:
            program, arguments = "mope", arguments[arguments.index("torch_pruning_mope") + 1 :]
        if program == "mope":
            known = CliRunner().invoke(app, [arguments[0], "--help"], env={"COLUMNS": "200"}).output
        elif program == "python" and not arguments[0].startswith("-"):
            known = (ROOT / arguments[0]).read_text(encoding="utf-8")
        else:
            assert program in {"pip", "pytest", "torchrun", "ls", "python"}
            continue
        for option in (argument for argument in arguments if argument.startswith("--")):
            assert option in known, f"{command!r}: no option {option}"
