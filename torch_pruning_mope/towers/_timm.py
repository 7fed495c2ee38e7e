"""What can be removed of timm's layers."""

from typing import Any

from ._discover import Found, register_units
from ._prunable import Units


@register_units(
    "timm.layers.mlp.Mlp",
    "timm.layers.mlp.ConvMlp",
    "timm.layers.mlp.GlobalResponseNormMlp",
    "timm.models.fastvit.ConvMlp",
)
def _units_of_mlp(module: Any) -> Found:
    return [("neurons", Units((module.fc1,), module.fc2))]


@register_units("timm.layers.mlp.SwiGLU")
def _units_of_swiglu(module: Any) -> Found:
    return [("neurons", Units((module.fc1_g, module.fc1_x), module.fc2))]


@register_units("timm.models.vitamin.GeGluMlp")
def _units_of_geglu(module: Any) -> Found:
    return [("neurons", Units((module.w0, module.w1), module.w2))]


@register_units("timm.models.vitamin.MbConvLNBlock")
def _units_of_inverted_bottleneck(module: Any) -> Found:
    return [("neurons", Units((module.conv1_1x1,), module.conv3_1x1))]
