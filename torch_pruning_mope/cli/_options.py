"""Options that several commands have, in groups, so that they read the same everywhere."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from enum import StrEnum
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from ..loading import LoadedModel

EMOJI = "emoji"
DATA, TRAINING, SCORING, BUDGETS = "Data", "Training", "Scoring", "Budgets"
data_option, training_option, scoring_option, budget_option = (
    partial(typer.Option, rich_help_panel=panel) for panel in (DATA, TRAINING, SCORING, BUDGETS)
)

DeviceOption = Annotated[str, typer.Option(help="Device, such as cpu or cuda.")]
QuietOption = Annotated[bool, typer.Option("--quiet", help="No progress bars.")]
SeedOption = Annotated[int, typer.Option(help="Seed of all draws.")]
ForceOption = Annotated[bool, typer.Option("--force", help="Replace what stands at --output, whoever wrote it.")]
ModelInstead = Annotated[
    str | None, typer.Option(help="A model by name, or a folder, in place of a run.", show_default=False)
]
PairsOption = Annotated[int | None, data_option(help="Images at most.", show_default="all; of emoji 1000")]
WorkersOption = Annotated[int, training_option(help="Processes that read images.")]
ParametersOption = Annotated[
    str | None,
    budget_option(help="Parameters left: '50%', '86M', 'image=86M,text=42M'; token embeddings not counted."),
]
RoundToOption = Annotated[
    str, budget_option(help="Every MLP keeps a multiple of this many neurons; 'auto' for what suits the device.")
]
ReconstructOption = Annotated[
    bool, typer.Option("--reconstruct/--no-reconstruct", help="Refit what is left onto the dense model's outputs.")
]
UniformOption = Annotated[bool, budget_option("--uniform", help="All layers of a tower keep as many units.")]


@dataclass(frozen=True)
class Scoring:
    metric: Annotated[
        str,
        scoring_option(help="Units are scored by its drop: contrastive_loss, recall_mean, recall@1, recall@5:t2i, …"),
    ] = "contrastive_loss"
    groups: Annotated[int, scoring_option(help="Neuron groups per MLP.", min=1)] = 16


@dataclass(frozen=True)
class Budgets:
    """Budgets, and rules for what is left."""

    parameters: ParametersOption = None
    multiply_adds: Annotated[str | None, budget_option(help="Multiply-adds left: '50%', '8G'.")] = None
    latency: Annotated[str | None, budget_option(help="Time left on this machine: '60%', '20ms'; measured.")] = None
    round_to: RoundToOption = "1"
    min_heads: Annotated[int, budget_option(help="Heads that every layer keeps.")] = 0
    min_neurons: Annotated[int, budget_option(help="Neurons that every layer keeps.")] = 0
    uniform: UniformOption = False
    batch_size: Annotated[int, budget_option(help="Inputs at once, for latency.")] = 1

    def amounts(self) -> dict[str, Any]:
        """The budgets as ``make_plan`` takes them."""
        return {name: budget(name, getattr(self, name)) for name in ("parameters", "multiply_adds", "latency")}

    def rules(self) -> dict[str, Any]:
        """The other arguments of ``make_plan``."""
        names = ("min_heads", "min_neurons", "uniform", "batch_size")
        return {"round_to": multiple(self.round_to)} | {name: getattr(self, name) for name in names}


@dataclass(frozen=True)
class Refit:
    ridge: Annotated[
        float | None,
        typer.Option(
            help="Penalty on the change of the weights, relative to the inputs'; by cross-validation if not given."
        ),
    ] = None
    inputs: Annotated[bool, typer.Option(help="Refit q, k, v and the first layers of MLPs too.")] = True


@dataclass(frozen=True)
class Training:
    steps: Annotated[int, training_option(help="Optimizer steps.", min=1)] = 1000
    batch_size: Annotated[int, training_option(help="Pairs of a step, over all ranks.", min=2)] = 256
    learning_rate: Annotated[
        float, training_option(help="The highest learning rate; small models take more than this.")
    ] = 2e-5
    precision: Annotated[str, training_option(help="Mixed precision: no, bf16 or fp16.")] = "no"
    shard: Annotated[
        bool, training_option("--shard", help="Each rank holds a part of what is trained (FSDP2); under torchrun.")
    ] = False
    cache: Annotated[bool, training_option("--cache", help="Run the teacher once, and keep its outputs on disk.")] = (
        False
    )
    in_memory: Annotated[bool, training_option("--in-memory", help="Hold the training pairs in memory.")] = False
    workers: WorkersOption = 0

    def reading(self) -> dict[str, Any]:
        """Arguments of ``Parts.batches``."""
        in_memory = self.in_memory or self.cache
        return {"batch_size": self.batch_size, "workers": self.workers, "memory": in_memory}

    def arguments(self) -> dict[str, Any]:
        """Arguments of ``distill``."""
        return {name: getattr(self, name) for name in ("steps", "batch_size", "learning_rate", "precision", "shard")}


def budget(name: str, text: str | None) -> Any:
    """A budget as ``make_plan`` takes it: an amount, or one for each tower (``"image=50%,text=60%"``)."""
    if text is None or "=" not in text:
        return _amount(text)
    parts = [part.split("=") for part in text.split(",")]
    if any(len(part) != 2 for part in parts):
        raise ValueError(
            f"--{name.replace('_', '-')} must be an amount such as '50%', or 'image=50%,text=60%'; found {text!r}."
        )
    return {tower.strip(): _amount(amount) for tower, amount in parts}


def _amount(text: str | None) -> Any:
    """A number where it is one, since texts without a unit are numbers to a shell."""
    try:
        return None if text is None else float(text)
    except ValueError:
        return text


def multiple(text: str) -> Any:
    """``--round-to`` as ``make_plan`` takes it."""
    return int(text) if text.isdecimal() else text


RootOption = Annotated[str | None, data_option(help="Folder that image files are relative to.")]
SplitOption = Annotated[str | None, data_option(help="Part of a Karpathy file, such as 'test'.")]
EncodingOption = Annotated[str | None, data_option(help="Of a text file that is not UTF-8, such as latin-1.")]
AllowCommandsOption = Annotated[
    bool,
    data_option("--allow-commands", help="Run the shell commands of data such as 'pipe:…'; never taken from a file."),
]
FollowLinksOption = Annotated[
    bool, data_option("--follow-links", help="Read images outside of --root too; never taken from a file.")
]


class Part(StrEnum):
    """A part of the data; no image is in two."""

    calibration = "calibration"
    train = "train"
    test = "test"
    all = "all"


@dataclass(frozen=True)
class Source:
    """A model, and pairs that are divided into parts."""

    model: Annotated[
        str,
        typer.Option(
            help="'tiny' (embedded), ARCH, ARCH@TAG or ARCH@FILE of open_clip, hf-hub:ORG/NAME, hf:ORG/NAME (transformers), "
            "or a folder: a pruned model's too."
        ),
    ] = "tiny"
    data: Annotated[
        str,
        data_option(
            help="Pairs: 'emoji' (embedded), a CSV or TSV (filepath,title), COCO or Karpathy JSON, a folder of images, "
            "WebDataset shards or their URL."
        ),
    ] = EMOJI
    root: RootOption = None
    split: SplitOption = None
    image_key: Annotated[str | None, data_option(help="Column of image files.")] = None
    caption_key: Annotated[str | None, data_option(help="Column of captions.")] = None
    encoding: EncodingOption = None
    calibration: Annotated[float, data_option(help="Share (or number) of the images to score on.")] = 0.1
    test: Annotated[float, data_option(help="Share (or number) of the images to test on; the rest is to train on.")] = (
        0.1
    )
    split_seed: Annotated[int, data_option(help="Seed of the division of the images.")] = 0
    max_skipped: Annotated[float, data_option(help="Share of the images that may be unusable.")] = 0.1
    pairs: PairsOption = None
    allow_commands: AllowCommandsOption = False
    follow_links: FollowLinksOption = False
    seed: SeedOption = 0
    device: DeviceOption = "cpu"

    @classmethod
    def of(cls, settings: Mapping[str, Any], **options: Any) -> "Source":
        """The source that the settings of a command name."""
        names = {field.name for field in fields(cls)}
        return cls(**{name: value for name, value in settings.items() if name in names} | options)

    def load(self) -> "LoadedModel":
        """The dense model; an error if torch does not have the device here."""
        import torch

        from ..checkpoint import load_model

        try:
            torch.empty(0, device=self.device)
        except (AssertionError, RuntimeError) as error:
            reason = str(error).partition("\n")[0]
            raise ValueError(
                f"--device must be one that torch has here; found {self.device!r}: {reason} Pass --device cpu."
            ) from error
        return load_model(self.model, device=self.device)

    def division(self) -> dict[str, Any]:
        """Options that decide which pairs there are, and in which part each is."""
        ignored = {"model", "data", "root", "device", "max_skipped", "allow_commands", "follow_links"}
        kept = {name: value for name, value in asdict(self).items() if name not in ignored}
        return kept | {"data": EMOJI if self.data == EMOJI else None}


@dataclass(frozen=True)
class OtherData:
    """Pairs in place of a run's."""

    data: Annotated[
        str | None, data_option(help="Pairs other than the run's, all of them.", show_default="the run's")
    ] = None
    root: RootOption = None
    split: SplitOption = None
    encoding: EncodingOption = None
    allow_commands: AllowCommandsOption = False
    follow_links: FollowLinksOption = False

    @property
    def is_given(self) -> bool:
        """True if other pairs are given; raises if only options of their reader are."""
        if self.data is None and (self.root is not None or self.split is not None or self.encoding is not None):
            raise ValueError("--root, --split and --encoding go with --data; found one without it. Give --data too.")
        return self.data is not None

    def over(self, source: Source) -> Source:
        """A run's source with these pairs, if they are given, and with this call's permissions."""
        own: dict[str, Any] = {"allow_commands": self.allow_commands, "follow_links": self.follow_links}
        if self.is_given:
            own |= {"data": self.data, "root": self.root, "split": self.split, "encoding": self.encoding}
        return replace(source, **own)
