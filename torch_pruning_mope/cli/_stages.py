"""``mope pretrain-stage`` and ``mope finetune-stage``: the paper's recipes."""

from collections.abc import Callable
from typing import Annotated, Any

import typer

from ..dual_encoder import DualEncoder
from ..runs import finetune_stage, pretrain_stage
from ._app import app, one_line_errors, write_json
from ._config import record
from ._data import Part
from ._options import (
    BUDGETS,
    TRAINING,
    BatchSizeOption,
    CalibrationOption,
    CaptionKeyOption,
    ConfigOption,
    DataOption,
    DeviceOption,
    GroupsOption,
    ImageKeyOption,
    InMemoryOption,
    JsonOption,
    LearningRateOption,
    MaxSkippedOption,
    MetricOption,
    ModelOption,
    PairsOption,
    ParametersOption,
    PrecisionOption,
    QuietOption,
    RootOption,
    RoundToOption,
    RunArgument,
    SeedOption,
    ShardOption,
    SplitOption,
    SplitSeedOption,
    StepsOption,
    TestOption,
    UniformOption,
    WorkersOption,
)
from ._run import Run, budget, first_rank, multiple

WidthOption = Annotated[
    str | None,
    typer.Option(
        help="What may be left once heads and neurons have gone: '70%', '100M', 'image=70%,text=80%'.",
        rich_help_panel=BUDGETS,
    ),
]


def _command(name: str, stage: Callable[..., DualEncoder], about: str) -> None:
    """Registers a stage; both take the same."""

    @app.command(name, help=about)
    def command(
        run: RunArgument,
        width: WidthOption = None,
        parameters: ParametersOption = None,
        model: ModelOption = "tiny",
        data: DataOption = "emoji",
        root: RootOption = None,
        split: SplitOption = None,
        image_key: ImageKeyOption = None,
        caption_key: CaptionKeyOption = None,
        calibration: CalibrationOption = 0.1,
        test: TestOption = 0.1,
        split_seed: SplitSeedOption = 0,
        max_skipped: MaxSkippedOption = 0.1,
        pairs: PairsOption = None,
        train_pairs: PairsOption = None,
        seed: SeedOption = 0,
        metric: MetricOption = "contrastive_loss",
        groups: GroupsOption = 16,
        round_to: RoundToOption = "1",
        uniform: UniformOption = False,
        rounds: Annotated[
            int, typer.Option(help="Rounds of pruning a little and distilling.", min=1, rich_help_panel=BUDGETS)
        ] = 1,
        finetune_steps: Annotated[
            int,
            typer.Option(
                help="Steps that the whole model is fine-tuned first; of finetune-stage.",
                min=0,
                rich_help_panel=TRAINING,
            ),
        ] = 0,
        steps: StepsOption = 1000,
        batch_size: BatchSizeOption = 256,
        learning_rate: LearningRateOption = 2e-5,
        precision: PrecisionOption = "no",
        shard: ShardOption = False,
        cache: Annotated[
            bool,
            typer.Option(
                "--cache",
                help="Run the teacher once, and keep its embeddings and hidden states in the run's folder.",
                rich_help_panel=TRAINING,
            ),
        ] = False,
        in_memory: InMemoryOption = False,
        workers: WorkersOption = 0,
        device: DeviceOption = "cpu",
        quiet: QuietOption = False,
        json: JsonOption = None,
        config: ConfigOption = None,
    ) -> None:
        given = {key: value for key, value in locals().items() if key not in {"name", "stage"}}  # free variables
        with one_line_errors():
            first: dict[str, Any] = {"finetune_steps": finetune_steps} if stage is finetune_stage else {}
            if finetune_steps and not first:
                raise ValueError(
                    f"--finetune-steps must be 0 for pretrain-stage, which prunes zero-shot; found {finetune_steps}. Use "
                    "finetune-stage."
                )
            record(run, name, given)
            begun = Run(run)
            loaded = begun.load()
            train = begun.data.batches(
                Part.train,
                loaded,
                batch_size,
                limit=train_pairs,
                seed=seed,
                workers=workers,
                memory=in_memory or cache,
            )
            student = stage(
                loaded.model,
                begun.data.pairs(Part.calibration, loaded, pairs or 1000, seed),
                train,
                path=run,
                width=budget("--width", width),
                parameters=budget("--parameters", parameters),
                metric=metric,
                groups=groups,
                round_to=multiple(round_to),
                uniform=uniform,
                rounds=rounds,
                **first,
                cache_teacher=cache,
                progress=not quiet,
                steps=steps,
                batch_size=batch_size,
                learning_rate=learning_rate,
                precision=precision,
                shard=shard,
                seed=seed,
            )
            if not first_rank():
                return
            student.save_pretrained(run / "distilled", base=begun.model_name)
            left = student.counts()
            typer.echo(f"{left.heads} heads and {left.neurons} neurons left\nmodel in {run / 'distilled'}")
            result: dict[str, Any] = {"heads": left.heads, "neurons": left.neurons, "model": str(run / "distilled")}
            write_json(result, json)


_command(
    "pretrain-stage",
    pretrain_stage,
    "The paper's pre-training stage: prunes width, then depth, then distils. Goes on where it was interrupted.",
)
_command(
    "finetune-stage",
    finetune_stage,
    "The paper's fine-tuning stage: prunes width, distils, prunes depth, distils. Goes on where it was interrupted.",
)
