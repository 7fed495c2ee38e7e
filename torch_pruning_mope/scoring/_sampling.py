"""Stratified samples of calibration images that grow in stages, and estimates from them.

A loss is estimated by a difference estimator (Särndal, Swensson & Wretman 1992): the mean over all images of what is predicted,
plus the sampled images' mean error of that prediction. Only this error has a variance, and none once all images are sampled.

Axes: ``I`` images, ``S`` strata.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

_FLOOR = 0.3
"""Share of the mean variance that is added to every image's: what is expected of an image is itself only a guess."""
_PRIOR = 4
"""Weight, in observations, of the other units' variance in a stratum (a moderated variance, Smyth 2004)."""


@dataclass
class Sample:
    """In which order images are drawn, and from which strata.

    Attributes:
        order: All images; the first ``n`` are the sample of size ``n``.
        stratum: Each image's stratum, counting from 0.
    """

    order: Int[Tensor, "I"]
    stratum: Int[Tensor, "I"]

    @classmethod
    def simple(cls, images: int, generator: torch.Generator) -> "Sample":
        """Simple random sampling: one stratum."""
        order = torch.randperm(images, generator=generator)
        return cls(order, torch.zeros_like(order))

    def stratify(self, squares: Float[Tensor, "I"], pilot: int, strata: int) -> None:
        """Draws all images after the pilot in turn from strata of equal total deviation; the pilot becomes one of its own.

        With as many from each, this is Neyman's allocation (strata after Dalenius & Hodges 1959).

        Args:
            squares: How far each image's share is expected to be from its prediction, squared, in any unit.
            pilot: Images drawn already.
            strata: How many strata to make of the others.
        """
        deviations = (squares + _FLOOR * squares.mean() + 1e-30).sqrt()
        rest = self.order[pilot:]
        rest = rest[deviations[rest].argsort(stable=True)]
        shares = deviations[rest].cumsum(0) / deviations[rest].sum()
        self.stratum[rest] = 1 + (shares * strata).long().clamp_max(strata - 1)
        self.stratum[self.order[:pilot]] = 0
        self.stratum = self.stratum.unique(return_inverse=True)[1]
        turns = torch.zeros_like(self.order)
        later = self.order[pilot:]
        for stratum in self.stratum[later].unique():
            members = later[self.stratum[later] == stratum]
            turns[members] = torch.arange(len(members))
        self.order[pilot:] = later[(turns[later] * (len(later) + 1) + self.stratum[later]).argsort()]

    def estimate(
        self, predicted: Float[Tensor, "I"], found: Float[Tensor, "I"], images: int
    ) -> tuple[float, Float[Tensor, "S"]]:
        """The mean over all images.

        Args:
            predicted: What is predicted of each image.
            found: What was found; only the sampled images' is read.
            images: Size of the sample.

        Returns:
            The estimate, and the variance of the predictions' errors within each stratum (0 where one was seen).
        """
        drawn = self.order[:images]
        errors, stratum = (found - predicted)[drawn], self.stratum[drawn]
        sizes, seen = self._counts(images)
        means = torch.zeros_like(sizes).index_add_(0, stratum, errors) / seen
        squares = torch.zeros_like(sizes).index_add_(0, stratum, (errors - means[stratum]).square())
        return float(predicted.mean()) + float((sizes * means).sum() / sizes.sum()), squares / (seen - 1).clamp_min(1)

    def variance(self, errors: Float[Tensor, "S"], others: Float[Tensor, "S"], images: int) -> tuple[float, float]:
        """How uncertain an estimate is.

        Args:
            errors: Variances of its errors within each stratum.
            others: The same on average over comparable estimates, which counts where few errors were seen.
            images: Size of the sample.

        Returns:
            The variance, and its degrees of freedom (Welch and Satterthwaite's). Infinite if all errors were alike, which is
            no evidence that the others are: rare ones may have been missed.
        """
        if images == len(self.order):
            return 0.0, math.inf
        sizes, seen = self._counts(images)
        freedom = seen - 1 + _PRIOR
        variances = ((seen - 1) * errors + _PRIOR * others) / freedom
        parts = (sizes / sizes.sum()).square() * variances * (1 / seen - 1 / sizes)
        variance = float(parts.sum())
        return (
            (variance, variance**2 / float((parts.square() / freedom).sum())) if variance > 0 else (math.inf, math.inf)
        )

    def _counts(self, images: int) -> tuple[Float[Tensor, "S"], Float[Tensor, "S"]]:
        """Each stratum's images, and how many of them are in the sample."""
        sizes = torch.bincount(self.stratum)
        return sizes.double(), torch.bincount(self.stratum[self.order[:images]], minlength=len(sizes)).double()
