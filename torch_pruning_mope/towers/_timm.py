"""timm's layers and Vision Transformers."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from .._registry import is_of
from ._discover import Found, register_channels
from ._opaque import OpaqueTower
from ._prunable import Channels
from ._sublayers import AttentionSublayer, FeedForwardSublayer, Stream
from ._tower import Block, Tower


@register_channels(
    "timm.layers.mlp.Mlp",
    "timm.layers.mlp.ConvMlp",
    "timm.layers.mlp.GlobalResponseNormMlp",
    "timm.models.fastvit.ConvMlp",
)
def _units_of_mlp(module: Any) -> Found:
    return [("neurons", Channels((module.fc1,), module.fc2))]


@register_channels("timm.layers.mlp.SwiGLU")
def _units_of_swiglu(module: Any) -> Found:
    return [("neurons", Channels((module.fc1_g, module.fc1_x), module.fc2))]


@register_channels("timm.models.vitamin.GeGluMlp")
def _units_of_geglu(module: Any) -> Found:
    return [("neurons", Channels((module.w0, module.w1), module.w2))]


@register_channels("timm.models.vitamin.MbConvLNBlock")
def _units_of_inverted_bottleneck(module: Any) -> Found:
    return [("neurons", Channels((module.conv1_1x1,), module.conv3_1x1))]


class TimmVit(OpaqueTower, Tower):
    """timm's plain Vision Transformer, in parts; an attention pool runs with what comes after the blocks."""

    def __init__(self, visual: Any, encode: Callable[[Tensor], Tensor], example: Callable[[], Tensor]) -> None:
        super().__init__(visual.trunk, encode, example)
        self._visual = visual

    @staticmethod
    def fits(visual: Any) -> bool:
        """Returns whether a ``TimmModel`` holds such a trunk."""
        trunk = visual.trunk
        return is_of(trunk, "timm.models.vision_transformer.VisionTransformer") and all(
            is_of(block, "timm.models.vision_transformer.Block") and is_of(block.mlp, "timm.layers.mlp.Mlp")
            for block in trunk.blocks
        )

    def stem(self, inputs: Tensor) -> Stream:
        """Patches, positions, prefix tokens and the first norm."""
        trunk: Any = self._visual.trunk
        x: Tensor = trunk.norm_pre(trunk.patch_drop(trunk._pos_embed(trunk.patch_embed(inputs))))
        pools_first = trunk.attn_pool is None and trunk.global_pool == "token"
        return Stream(x, None, torch.zeros(len(x), dtype=torch.long, device=x.device) if pools_first else None)

    @property
    def blocks(self) -> Sequence[Block]:
        """The transformer's blocks in parts, and the pool."""
        inside = set(self._visual.trunk.blocks)
        return [_in_parts(block) if block.module in inside else block for block in super().blocks]

    def readout(self, stream: Stream) -> Float[Tensor, "N J"]:
        """Norm, pool, head and open_clip's projection."""
        trunk: Any = self._visual.trunk
        pooled: Tensor = self._visual.head(trunk.forward_head(trunk.norm(stream.x)))
        return pooled


def _in_parts(block: Block) -> Block:
    own: Any = block.module
    mlp = own.mlp
    return Block(
        own,
        AttentionSublayer(own.norm1, own.attn, nn.Sequential(own.attn.proj_drop, own.ls1, own.drop_path1)),
        FeedForwardSublayer(
            own.norm2,
            nn.Sequential(mlp.fc1, mlp.act, mlp.drop1, mlp.norm),
            mlp.fc2,
            nn.Sequential(mlp.drop2, own.ls2, own.drop_path2),
        ),
        block.siblings,
    )
