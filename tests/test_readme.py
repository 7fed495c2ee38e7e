"""Every snippet of the README runs."""

import json
import re
import shlex
import statistics
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

import torch_pruning_mope as mope
from tests.unit import zoo
from torch_pruning_mope.cli import app
from torch_pruning_mope.evaluation import families_markdown, load_families

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")


def snippets(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL)


def test_python_snippets_run_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = mope.emoji_pairs
    monkeypatch.setattr(mope, "emoji_pairs", lambda split, size=1000, seed=0: original(split, min(size, 24), seed))
    monkeypatch.chdir(tmp_path)
    rows = ["filepath,title"]
    for number, (pixels, caption) in enumerate(mope.emoji_scenes("calibration", 40)):
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
        rows.append(f"{number}.png,{caption}")
    (tmp_path / "pairs.csv").write_text("\n".join(rows))
    blocks = snippets("python")
    assert len(blocks) >= 10
    namespace: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, "README.md", "exec"), namespace)
    assert (tmp_path / "scores.json").exists()
    pairs = namespace["pairs"]
    for own in ("MyClip", "MyFastClip"):
        wrapped = mope.DualEncoder(namespace[own]())  # type: ignore[operator]
        prefix = mope.score(wrapped, pairs, metric="contrastive_loss", groups=2, progress=False)
        plain = mope.score(wrapped, pairs, metric="contrastive_loss", groups=2, progress=False, engine="plain")
        assert [s.loss for s in prefix.scores] == pytest.approx([s.loss for s in plain.scores], abs=1e-5)
        importance = mope.MoPEImportance(wrapped, pairs, progress=False)
        removed = mope.prune(wrapped, importance, head_ratio=0.5, ffn_ratio=0.5)
        assert removed == mope.Counts(heads=8, neurons=256, width=0)


def test_the_table_of_families_is_the_measured_one() -> None:
    """`python benchmarks/families.py` measures; this writes nothing."""
    shown = README.partition("<!-- families -->\n")[2].partition("\n<!-- /families -->")[0]
    assert shown == families_markdown()
    rows = load_families()
    assert [row["family"] for row in rows] == list(zoo.FAMILIES)
    for row in rows:
        differences = [value for value in row.values() if isinstance(value, float)]
        assert len(differences) == 5
        assert max(differences) <= 1e-5
        assert row["swapped = original"] <= 1e-6


def test_messages_that_are_explained_are_messages_of_the_package() -> None:
    table = README.partition("| message | what is behind it |")[2].partition("\n\n")[0]
    messages = re.findall(r"^\| `([^`]+)` \|", table, flags=re.MULTILINE)
    assert len(messages) >= 8
    source = "".join(path.read_text(encoding="utf-8") for path in Path(mope.__file__).parent.rglob("*.py"))
    joined = re.sub(r'"\s*\n\s*f?"', "", source)  # messages are written over several lines
    assert [message for message in messages if message not in joined] == []


def test_the_table_of_compression_is_the_measured_one() -> None:
    """`python benchmarks/compression.py` measures; this writes nothing."""
    file = Path(__file__).parent.parent / "benchmarks" / "figures" / "compression.json"
    rows = [row for row in json.loads(file.read_text())["grid"] if row["stage"] == "trained"]
    mean = {(row["criterion"], row["budget"], row["seed"]): (row["i2t_r1"] + row["t2i_r1"]) / 2 for row in rows}
    shown = README.partition("<!-- compression -->")[2].partition("<!-- /compression -->")[0]
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


def test_shell_snippets_are_commands_that_exist() -> None:
    lines = [line for block in snippets("bash") for line in block.splitlines()]
    lines += [line[2:] for block in snippets("console") for line in block.splitlines() if line.startswith("$ mope")]
    assert any(line.startswith("pip install . && mope demo") for line in lines)
    assert 'pip install -e ".[dev]" && pytest' in lines
    for command in (part.strip() for line in lines for part in line.split("&&")):
        program, *arguments = shlex.split(command)
        if program == "torchrun" and "-m" in arguments:
            program, arguments = "mope", arguments[arguments.index("torch_pruning_mope") + 1 :]
        if program == "mope":
            known = CliRunner().invoke(app, [arguments[0], "--help"]).output
        elif program == "python":
            known = (Path(__file__).parent.parent / arguments[0]).read_text(encoding="utf-8")
        else:
            assert program in {"pip", "pytest", "torchrun", "ls"}
            continue
        for option in (argument for argument in arguments if argument.startswith("--")):
            assert option in known, f"{command!r}: no option {option}"
