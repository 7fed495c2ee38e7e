r"""How many evaluations does adaptive scoring save, and does it find what the exact table says? Heads, several draws.

    python examples/train_tiny_clip.py --config second.json --out second.safetensors --steps 1300 --curriculum-steps 300 \
        --threads 1
    python benchmarks/adaptive.py --json FILE [--second second.json second.safetensors] [--seeds 10] [--cache DIR]

where second.json is ``{"vision_cfg": {"width": 128, "layers": 4, "head_width": 16}, "text_cfg": {"width": 96, "layers": 3,
"heads": 6}}``. For each model, metric and share of heads to remove (of both towers together), with a budget of a quarter of the
exact evaluations and without one:

    recovered   share of the exact table's kept heads that the best guess keeps: mean, and lowest over draws
    cost        images evaluated, of units x N
    decided     share of the units whose side is claimed at 99 % confidence
    wrong       claims that the exact table contradicts
    off by      how far a misplaced unit's exact score lies beyond the cut, at most, in exact standard errors of its score

Ablated embeddings are computed once per draw, for the exact table, and looked up for the rest; ``--engine`` computes them anew.
The constants in ``scoring/_adaptive.py`` were chosen on draws 100 to 102, which are not reported.
"""

import argparse
import json
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import open_clip
import torch
from safetensors.torch import load_file
from torch import Tensor

import torch_pruning_mope as mope
from torch_pruning_mope.metrics import resolve_metric
from torch_pruning_mope.metrics._metric import PerImageMetric
from torch_pruning_mope.scoring import Ablation, Meter, PrefixEngine, enumerate_units, single_ablation
from torch_pruning_mope.scoring._adaptive import AdaptiveScore, Evaluate, adaptive_scores
from torch_pruning_mope.scoring._prediction import ablation_features

RATIOS = (0.3, 0.5)
METRICS = ("recall_mean", "contrastive_loss")


def second_model(config: Path, weights: Path) -> open_clip.CLIP:
    """A model that the example script trained."""
    sys.path.insert(0, str(Path(__file__).parent.parent / "examples"))
    from train_tiny_clip import build_model

    model = build_model(config)
    model.load_state_dict({name: tensor.float() for name, tensor in load_file(weights).items()})
    return model.eval()


class Draw:
    """One calibration draw: the exact ablated embeddings and each metric's exact table."""

    def __init__(self, encoder: mope.DualEncoder, seed: int, count: int, cache: Path | None) -> None:
        self.encoder = encoder
        self.pairs = mope.emoji_pairs("calibration", count, seed=seed)
        self.ablations = [
            single_ablation(unit) for unit in enumerate_units(encoder, ("head",), {}, 1, ("image", "text"))
        ]
        inputs: dict[Any, Tensor] = {"image": self.pairs.images, "text": self.pairs.tokens}
        self.dense = Meter(PrefixEngine(encoder), self.pairs, mope.Recall()).whole
        by_tower = {name: [a for a in self.ablations if a.tower == name] for name in inputs}
        self.features: dict[Ablation, Any] = {}
        for name, x in inputs.items():
            self.features |= ablation_features(encoder, name, x, by_tower[name])
        if cache is not None and cache.exists():
            self.ablated = dict(zip(self.ablations, torch.load(cache)["emb"], strict=True))
        else:
            engine = self.by_engine()
            self.ablated = {a: e for mine in by_tower.values() for a, e in engine(mine, torch.arange(count))}
            if cache is not None:
                torch.save({"emb": torch.stack([self.ablated[a] for a in self.ablations])}, cache)

    def by_engine(self) -> Evaluate:
        """Evaluates, and knows nothing yet."""
        return Meter(PrefixEngine(self.encoder), self.pairs, mope.Recall()).sampled

    def look_up(self, ablations: Sequence[Ablation], rows: Tensor) -> Iterator[tuple[Ablation, Tensor]]:
        """In the engine's stead."""
        for ablation in ablations:
            yield ablation, self.ablated[ablation][rows]

    def metric(self, name: str) -> PerImageMetric:
        """The metric of a name."""
        metric = resolve_metric(name, float(torch.as_tensor(self.encoder.logit_scale).detach()))
        return cast("PerImageMetric", metric)

    def exact(self, metric: PerImageMetric) -> Tensor:
        """The exact table: what each image's share loses under each ablation ``[U, I]``."""
        index = self.pairs.image_index
        whole = metric.per_image(self.dense["image"][None], self.dense["text"][None], index)[0]
        rows = []
        for ablation in self.ablations:
            both = {name: e[None] for name, e in self.dense.items()} | {ablation.tower: self.ablated[ablation][None]}
            rows.append(whole - metric.per_image(both["image"], both["text"], index)[0])
        return torch.stack(rows).double()


def compare(scores: Sequence[AdaptiveScore], shares: Tensor, remove: int) -> dict[str, float]:
    """The figures of one draw."""
    exact, count = shares.mean(1), shares.shape[1]
    order = exact.argsort(stable=True)
    gone = set(order[:remove].tolist())
    cut = float(exact[order[remove - 1 : remove + 1]].mean())
    errors = shares.std(1) / count**0.5
    claims = [
        (score.side == "removed") == (unit in gone) for unit, score in enumerate(scores) if score.side != "undecided"
    ]
    misplaced = [unit for unit, score in enumerate(scores) if score.removed != (unit in gone)]
    return {
        "recovered": 1 - len(misplaced) / 2 / (len(scores) - remove),
        "cost": sum(score.queries for score in scores) / (len(scores) * count),
        "decided": len(claims) / len(scores),
        "claims": len(claims),
        "wrong": claims.count(False),
        "off_by": max((abs(float(exact[unit]) - cut) / float(errors[unit]) for unit in misplaced), default=0.0),
    }


def bench(options: argparse.Namespace) -> list[dict[str, Any]]:
    """A row per model, draw, metric, cut and budget."""
    models = {"tiny": mope.load_tiny_clip()}
    if options.second:
        models["second"] = second_model(*options.second)
    rows = []
    encoders = {name: mope.DualEncoder(model) for name, model in models.items()}
    for seed in range(options.first_seed, options.first_seed + options.seeds):
        for name, encoder in encoders.items():
            draw = Draw(encoder, seed, options.pairs, options.cache and options.cache / f"{name}_{seed}.pt")
            for metric_name in METRICS:
                metric = draw.metric(metric_name)
                shares = draw.exact(metric)
                for ratio in RATIOS:
                    remove = round(ratio * len(draw.ablations))
                    for budget in options.budgets:
                        evaluate = draw.by_engine() if options.engine else draw.look_up
                        began = time.perf_counter()
                        scores = adaptive_scores(
                            evaluate, draw.ablations, draw.dense, metric, draw.pairs.image_index, remove,
                            features=draw.features, budget=budget, seed=seed,
                        )  # fmt: skip
                        row = {"model": name, "seed": seed, "metric": metric_name, "ratio": ratio, "budget": budget}
                        row["seconds"] = time.perf_counter() - began
                        rows.append(row | compare(scores, shares, remove))
                        options.json.write_text(json.dumps(rows, indent=1), "utf-8")
            print(f"{name} draw {seed} done", file=sys.stderr, flush=True)
    return rows


def _budget(text: str) -> float | None:
    return None if text == "none" else float(text)


def main() -> None:
    """Runs, saves every row, prints a line per cell."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--second", type=Path, nargs=2, metavar=("CONFIG", "WEIGHTS"))
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--pairs", type=int, default=1000)
    parser.add_argument("--cache", type=Path, help="folder for exact embeddings")
    parser.add_argument("--engine", action="store_true", help="evaluate anew instead of looking up")
    parser.add_argument("--budgets", type=_budget, nargs="+", default=[0.25, None], help="shares of the cost, or none")
    cells = defaultdict(list)
    for row in bench(parser.parse_args()):
        cells[row["model"], row["metric"], row["ratio"], row["budget"]].append(row)
    print("model   metric            cut  budget  recovered (lowest)  cost (highest)  decided  wrong/claims  off by")
    for (model, metric, ratio, budget), rows in cells.items():
        recovered, cost, decided = ([row[key] for row in rows] for key in ("recovered", "cost", "decided"))
        print(
            f"{model:7} {metric:16} {ratio:4} {budget or 'none':>7}  {statistics.mean(recovered):8.3f} ({min(recovered):.3f})"
            f"   {statistics.mean(cost):6.3f} ({max(cost):.3f})   {statistics.mean(decided):6.3f}"
            f"   {sum(row['wrong'] for row in rows):4}/{sum(row['claims'] for row in rows):<5} "
            f"{max(row['off_by'] for row in rows):8.2f}"
        )


if __name__ == "__main__":
    main()
