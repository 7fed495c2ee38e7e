"""torch's own Transformer layers."""

from typing import Any

from torch import nn

from ._discover import Found, register_channels
from ._prunable import Channels


@register_channels(nn.TransformerEncoderLayer, nn.TransformerDecoderLayer)
def _channels_of_layer(module: Any) -> Found:
    return [("neurons", Channels((module.linear1,), module.linear2))]
