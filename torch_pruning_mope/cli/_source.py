"""The model and the pairs of a run, as options: the command that begins a run takes them, the others read them."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ._options import DeviceOption, PairsOption, SeedOption, data_option

if TYPE_CHECKING:
    from ..loading import LoadedModel

EMOJI = "emoji"
RootOption = Annotated[str | None, data_option(help="Folder that image files are relative to.")]
SplitOption = Annotated[str | None, data_option(help="Part of a Karpathy file, such as 'test'.")]
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
    encoding: Annotated[str | None, data_option(help="Of a text file that is not UTF-8, such as latin-1.")] = None
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
    encoding: Annotated[str | None, data_option(help="Of a text file that is not UTF-8, such as latin-1.")] = None
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
