"""Zero-shot metrics Z: pure tensor functions of image and text embeddings."""

import re

from ..errors import MetricError
from ._accuracy import ZeroShotAccuracy, class_ranks
from ._contrastive import ContrastiveLoss, contrastive_losses
from ._metric import FunctionMetric, Metric, MetricFunction, normalised
from ._recall import Recall, image_to_text_ranks, text_to_image_ranks

MetricLike = Metric | MetricFunction | str

__all__ = [
    "ContrastiveLoss",
    "FunctionMetric",
    "Metric",
    "MetricFunction",
    "MetricLike",
    "Recall",
    "ZeroShotAccuracy",
    "class_ranks",
    "contrastive_losses",
    "image_to_text_ranks",
    "normalised",
    "resolve_metric",
    "text_to_image_ranks",
]


def resolve_metric(metric: object, logit_scale: float = 100.0) -> Metric:
    """Returns the metric of a name or callable; a metric itself."""
    if isinstance(metric, Metric):
        return metric
    if metric == "recall_mean":
        return Recall()
    if metric == "contrastive_loss":
        return ContrastiveLoss(logit_scale)
    if isinstance(metric, str) and (match := re.fullmatch(r"recall@([1-9]\d*)(?::(i2t|t2i))?", metric)):
        return Recall((int(match[1]),), (match[2],) if match[2] else ("i2t", "t2i"))
    if callable(metric):
        return FunctionMetric(metric)
    raise MetricError(
        "metric must be 'recall_mean', 'recall@K', 'recall@K:i2t', 'recall@K:t2i', 'contrastive_loss', a Metric, or a "
        f"callable on (image embeddings, text embeddings); found {metric!r}."
    )
