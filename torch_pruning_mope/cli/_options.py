"""Options that several commands have, so that they read the same everywhere."""

from pathlib import Path
from typing import Annotated

import typer

from ._app import check_folder
from ._config import from_config
from ._data import Part

DATA, TRAINING, SCORING, BUDGETS = "Data", "Training", "Scoring", "Budgets"

RunArgument = Annotated[Path, typer.Argument(help="Folder of the run; it keeps everything that the commands make.")]
ConfigOption = Annotated[
    Path | None,
    typer.Option(
        "--config",
        help="YAML file, or folder of another run, with this command's settings; flags go before them.",
        callback=from_config,
        is_eager=True,
    ),
]
JsonOption = Annotated[
    Path | None,
    typer.Option("--json", help="File for the result as JSON; - for standard output.", callback=check_folder),
]
ModelOption = Annotated[
    str,
    typer.Option(
        help="'tiny' (embedded), ARCH, ARCH@TAG or ARCH@FILE of open_clip, hf-hub:ORG/NAME, hf:ORG/NAME (transformers), or a "
        "folder: a pruned model's too."
    ),
]
DeviceOption = Annotated[str, typer.Option(help="Device, such as cpu or cuda.")]
SeedOption = Annotated[int, typer.Option(help="Seed of all draws.")]
QuietOption = Annotated[bool, typer.Option("--quiet", help="No progress bars.")]

DataOption = Annotated[
    str,
    typer.Option(
        help="Pairs: 'emoji' (embedded), a CSV or TSV (filepath,title), COCO or Karpathy JSON, a folder of images, WebDataset "
        "shards or their URL.",
        rich_help_panel=DATA,
    ),
]
OwnDataOption = Annotated[
    str | None,
    typer.Option(help="Other pairs than the run's, taken whole.", rich_help_panel=DATA, show_default="the run's"),
]
RootOption = Annotated[str | None, typer.Option(help="Folder that image files are relative to.", rich_help_panel=DATA)]
SplitOption = Annotated[str | None, typer.Option(help="Part of a Karpathy file, such as 'test'.", rich_help_panel=DATA)]
ImageKeyOption = Annotated[str | None, typer.Option(help="Column of image files.", rich_help_panel=DATA)]
CaptionKeyOption = Annotated[str | None, typer.Option(help="Column of captions.", rich_help_panel=DATA)]
CalibrationOption = Annotated[
    float, typer.Option(help="Share (or number) of the images to score on.", rich_help_panel=DATA)
]
TestOption = Annotated[
    float,
    typer.Option(help="Share (or number) of the images to test on; the rest is to train on.", rich_help_panel=DATA),
]
SplitSeedOption = Annotated[int, typer.Option(help="Seed of the division of the images.", rich_help_panel=DATA)]
MaxSkippedOption = Annotated[
    float, typer.Option(help="Share of the images that may be unusable.", rich_help_panel=DATA)
]
PairsOption = Annotated[
    int | None, typer.Option(help="At most so many images.", show_default="all; of emoji 1000", rich_help_panel=DATA)
]
PartOption = Annotated[Part, typer.Option(help="Which part of the run's pairs.", rich_help_panel=DATA)]

ParametersOption = Annotated[
    str | None,
    typer.Option(
        help="What may be left: '50%', '86M', or by tower 'image=86M,text=42M'; token embeddings not counted.",
        rich_help_panel=BUDGETS,
    ),
]
RoundToOption = Annotated[
    str,
    typer.Option(
        help="Multiple that every MLP keeps neurons in; 'auto' for what suits the device.", rich_help_panel=BUDGETS
    ),
]
MetricOption = Annotated[
    str,
    typer.Option(
        help="What units are scored by: contrastive_loss, recall_mean, recall@1, recall@5:t2i, …",
        rich_help_panel=SCORING,
    ),
]
GroupsOption = Annotated[int, typer.Option(help="Neuron groups per MLP.", min=1, rich_help_panel=SCORING)]
StepsOption = Annotated[int, typer.Option(help="Optimizer steps.", min=1, rich_help_panel=TRAINING)]
BatchSizeOption = Annotated[int, typer.Option(help="Pairs of a step, over all ranks.", min=2, rich_help_panel=TRAINING)]
LearningRateOption = Annotated[float, typer.Option(help="The highest learning rate.", rich_help_panel=TRAINING)]
PrecisionOption = Annotated[str, typer.Option(help="Mixed precision: no, bf16 or fp16.", rich_help_panel=TRAINING)]
ShardOption = Annotated[
    bool,
    typer.Option(
        "--shard", help="Each rank holds a part of what is trained (FSDP2); under torchrun.", rich_help_panel=TRAINING
    ),
]
WorkersOption = Annotated[int, typer.Option(help="Processes that read images.", rich_help_panel=TRAINING)]
InMemoryOption = Annotated[bool, typer.Option(help="Hold the training pairs in memory.", rich_help_panel=TRAINING)]

MultiplyAddsOption = Annotated[
    str | None, typer.Option(help="Multiply-adds that may be left: '50%', '8G'.", rich_help_panel=BUDGETS)
]
LatencyOption = Annotated[
    str | None,
    typer.Option(help="Time on this machine that may be left: '60%', '20ms'; measured.", rich_help_panel=BUDGETS),
]
MinHeadsOption = Annotated[int, typer.Option(help="Heads that every layer keeps.", rich_help_panel=BUDGETS)]
MinNeuronsOption = Annotated[int, typer.Option(help="Neurons that every layer keeps.", rich_help_panel=BUDGETS)]
UniformOption = Annotated[
    bool, typer.Option("--uniform", help="All layers of a tower keep as much.", rich_help_panel=BUDGETS)
]
