"""What a few ablated embeddings, and the unpruned model, say about all the others.

A metric ranks every query among a whole gallery, so the ablated embeddings of a sample of the inputs are not enough: a gallery
of the sample alone makes recall saturate. The rest is predicted by kernel ridge regression, from what the unpruned model
computes anyway: its embedding of an input, and what the unit itself put out there. Predictions of the sampled inputs themselves
leave their own image out, so that their errors are those of inputs that were not sampled.
"""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from .._state import evaluation_mode
from ..encoder import EncoderCore, TowerName
from ..errors import MetricError
from ..metrics import Metric
from ..towers import Stream, Tower, first_tensor
from ._units import Ablation, Kind

Features = Mapping[Ablation, Sequence[Float[Tensor, "_ _"]]]
"""For each ablation, what is known about each input of its tower (a row each) without removing anything."""

_RIDGE = 0.03
"""Noise variance relative to the kernel's. The error is flat around it, for either metric."""


@torch.inference_mode()
def ablation_features(
    encoder: EncoderCore, tower: TowerName, inputs: Tensor, ablations: Sequence[Ablation], batch_size: int = 128
) -> dict[Ablation, tuple[Float[Tensor, "N F"], Float[Tensor, "N F"]]]:
    """What each ablation takes away, at the pooled token and on average over tokens, in one pass of the unpruned model.

    Args:
        encoder: The dual encoder; left as it is.
        tower: Which tower.
        inputs: Its inputs.
        ablations: Ablations of that tower.
        batch_size: Sequences run at once.

    Returns:
        For heads and neurons the hidden channels, for a block the difference that it makes to the residual stream.
    """
    found: dict[Ablation, tuple[list[Tensor], list[Tensor]]] = {ablation: ([], []) for ablation in ablations}
    view = encoder.towers[tower]
    in_parts = isinstance(view, Tower) and all(block.is_in_parts for block in view.blocks)
    observe = _through_parts if in_parts else _by_hooks
    with evaluation_mode(encoder.model):
        for part in inputs.split(batch_size):
            summaries = observe(encoder, tower, part)
            for ablation, (pooled, mean) in found.items():
                channels = list(ablation.channels) if ablation.channels else slice(None)
                at_pooled, on_average = summaries[ablation.layer, ablation.kind]
                pooled.append(at_pooled[:, channels])
                mean.append(on_average[:, channels])
    return {ablation: (torch.cat(pooled), torch.cat(mean)) for ablation, (pooled, mean) in found.items()}


_Summaries = dict[tuple[int, Kind], tuple[Tensor, Tensor]]


def _through_parts(encoder: EncoderCore, tower: TowerName, part: Tensor) -> _Summaries:
    """Layer by layer, where the tower has parts: its pooled token is known then, and how long an input is."""
    view = cast("Tower", encoder.towers[tower])
    lengths = view.lengths(part)
    cut = part if lengths is None else part[:, : int(lengths.max())]
    stream = view.stem(cut.to(encoder.device))
    summaries: _Summaries = {}
    for layer, block in enumerate(view.blocks):
        before = stream
        for sublayer in block.sublayers:
            kind: Kind = "head" if sublayer is block.attention else "neurons"
            hidden = sublayer.hidden(stream)
            stream = stream.with_x(sublayer.finish(stream.x, sublayer.output(hidden)))
            summaries[layer, kind] = _summaries(hidden, stream, lengths)
        summaries[layer, "block"] = _summaries(stream.x - before.x, stream, lengths)
    return summaries


def _by_hooks(encoder: EncoderCore, tower: TowerName, part: Tensor) -> _Summaries:
    """From what enters the layers that take the units, and from what blocks make of their input."""
    seen: dict[tuple[int, Kind], Tensor] = {}

    def put(key: tuple[int, Kind], value: Tensor) -> None:
        seen[key] = value.flatten(2).mT if value.ndim == 4 else value[:, None] if value.ndim == 2 else value

    def taken(key: tuple[int, Kind]) -> Any:
        return lambda _module, inputs: put(key, inputs[0])

    def changed(key: tuple[int, Kind]) -> Any:
        return lambda _module, args, kwargs, output: put(key, first_tensor(output) - first_tensor((args, kwargs)))

    with ExitStack() as hooks:
        for layer, block in enumerate(encoder.towers[tower].blocks):
            for kind, units in (("head", block.attention), ("neurons", block.feed_forward)):
                if units is not None:
                    hooks.callback(units.output.register_forward_pre_hook(taken((layer, kind))).remove)  # type: ignore[arg-type]
            if block.siblings is not None:
                handle = block.module.register_forward_hook(changed((layer, "block")), with_kwargs=True)
                hooks.callback(handle.remove)
        encoder.embed(tower, part)
    return {key: (hidden.mean(1), hidden.mean(1)) for key, hidden in seen.items()}


def _summaries(hidden: Float[Tensor, "n T U"], stream: Stream, lengths: Tensor | None) -> tuple[Tensor, Tensor]:
    """The pooled token's channels, or all the tokens' mean if none is pooled, and the mean over an input's own tokens."""
    if lengths is None:
        mean = hidden.mean(1)
    else:
        own = torch.arange(hidden.shape[1], device=hidden.device) < lengths.to(hidden.device)[:, None]
        mean = (hidden * own[..., None]).sum(1) / own.sum(1, keepdim=True)
    if stream.pooled is None:
        return mean, mean
    return hidden[torch.arange(len(hidden), device=hidden.device), stream.pooled], mean


def regress(
    inputs: Float[Tensor, "N F"], sampled: Int[Tensor, "q"], targets: Float[Tensor, "q J"], owners: Int[Tensor, "q"]
) -> Float[Tensor, "N J"]:
    """Kernel ridge regression with a Gaussian kernel plus a constant, of the median width.

    Args:
        inputs: What is known about every row.
        sampled: Rows whose targets are known.
        targets: These targets.
        owners: The image each sampled row belongs to.

    Returns:
        Predictions of all rows; those of a sampled row are of the regression without all rows of its owner.
    """
    device = targets.device
    if device.type == "mps":  # which has no double precision
        inputs, sampled, targets, owners = (tensor.cpu() for tensor in (inputs, sampled, targets, owners))
    squared = torch.cdist(inputs, inputs[sampled]).square().double()
    kernel = torch.exp(-squared / (2 * squared.median().clamp_min(1e-12))) + 1
    noise = _RIDGE * torch.eye(len(sampled), dtype=kernel.dtype, device=kernel.device)
    inverse = torch.linalg.inv(kernel[sampled] + noise)
    weights = inverse @ targets.double()
    predicted: Tensor = kernel @ weights
    # Leaving a block of rows out shifts them by the inverse of their block of `inverse`, times their weights.
    own = owners[:, None] == owners[None, :]
    predicted[sampled] = targets.double() - torch.linalg.solve(inverse * own, weights)
    return predicted.to(targets.dtype).to(device)


class Predictor:
    """Predicts each image's share of a metric's loss under an ablation that was evaluated on some of the images.

    Args:
        dense: Normalised embeddings of the unpruned model, one row per input.
        metric: Z; it must have per-image shares.
        image_index: The image that each caption describes.
        features: What else is known; may be empty.

    Raises:
        MetricError: If the metric has no per-image shares.
    """

    def __init__(
        self, dense: Mapping[TowerName, Tensor], metric: Metric, image_index: Int[Tensor, "N"], features: Features
    ) -> None:
        self._dense = dense
        self._metric = metric
        self._index = image_index
        self._owners = {"image": torch.arange(len(dense["image"]), device=image_index.device), "text": image_index}
        self._baseline = self._shares(dense)
        self._features = features
        self._known = {name: _standardised(embeddings) for name, embeddings in dense.items()}

    def rows(self, tower: TowerName, images: Int[Tensor, "n"]) -> Int[Tensor, "q"]:
        """The rows of a tower's inputs that belong to some images, in the order of the images."""
        owners = self._owners[tower]
        if tower == "image":
            return images
        order = owners.argsort(stable=True)
        counts = torch.bincount(owners, minlength=len(self._dense["image"]))
        starts = counts.cumsum(0) - counts
        return torch.cat([order[starts[i] : starts[i] + counts[i]] for i in images.tolist()])

    def losses(self, ablation: Ablation, embeddings: Float[Tensor, "N J"]) -> Float[Tensor, "I"]:
        """What each image's share loses if these are the embeddings of the ablated tower."""
        return self._baseline - self._shares({**self._dense, ablation.tower: embeddings})

    def _shares(self, embeddings: Mapping[TowerName, Tensor]) -> Float[Tensor, "I"]:
        shares = self._metric.per_image(embeddings["image"][None], embeddings["text"][None], self._index)
        if shares is None:
            raise MetricError(
                f"metric must have per-image shares, so that what some images lose says something; {self._metric.name} has "
                "none. Score it exactly."
            )
        return shares[0].double()

    def predict(
        self, ablation: Ablation, rows: Int[Tensor, "q"], embeddings: Float[Tensor, "q J"]
    ) -> tuple[Float[Tensor, "N J"], Float[Tensor, "N J"]]:
        """The ablated tower's embeddings from those of some rows.

        Args:
            ablation: The ablation.
            rows: The rows that are known.
            embeddings: Their normalised embeddings.

        Returns:
            All embeddings, each predicted without itself; and with the known ones in their places.
        """
        dense = self._dense[ablation.tower]
        known = [self._known[ablation.tower], *map(_standardised, self._features.get(ablation, ()))]
        change = regress(torch.cat(known, 1), rows, embeddings - dense[rows], self._owners[ablation.tower][rows])
        predicted = F.normalize(dense + change, dim=-1)
        mixed = predicted.clone()
        mixed[rows] = embeddings
        return predicted, mixed


def _standardised(values: Float[Tensor, "N F"]) -> Float[Tensor, "N F"]:
    """Centred, with a mean square length of 1, so that several kinds of features weigh the same."""
    centred = values - values.mean(0)
    return centred / centred.square().sum(1).mean().sqrt().clamp_min(1e-12)
