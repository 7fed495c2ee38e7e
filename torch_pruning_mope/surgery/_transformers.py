"""Stand-ins for Hugging Face's transformers: attention whose bias is per head, and positions."""

import copy
from typing import Any

import torch
from torch import Tensor, nn

from ._attention import PrunableAttention
from ._swap import build, register_attention


class _T5Attention(PrunableAttention):
    """Stands in for T5's self-attention, whose first layer makes the positions that all layers add to their scores."""

    relative_attention_bias: nn.Embedding | None
    compute_bias: Any

    def left_alone(self) -> list[nn.Parameter]:
        """The positions as well."""
        positions = self.relative_attention_bias
        return [*super().left_alone(), *([] if positions is None else positions.parameters())]

    def forward(  # type: ignore[override]
        self,
        hidden_states: Tensor,
        mask: Tensor | None = None,
        key_value_states: Tensor | None = None,
        position_bias: Tensor | None = None,
        past_key_values: object = None,
        **_: Any,
    ) -> tuple[Tensor, Tensor | None, None]:
        """Self-attention."""
        if key_value_states is not None or past_key_values is not None:
            raise NotImplementedError("key_value_states and past_key_values must be None; only encoders can be pruned.")
        if position_bias is None and self.relative_attention_bias is not None:
            length = hidden_states.shape[1]
            position_bias = self.compute_bias(self, length, length, device=hidden_states.device)
        bias = None if position_bias is None else self.own(position_bias.transpose(0, 1)).transpose(0, 1)
        if mask is not None:
            if mask.dtype == torch.bool:
                mask = torch.zeros_like(mask, dtype=hidden_states.dtype).masked_fill(~mask, float("-inf"))
            bias = mask if bias is None else bias + mask
        out: Tensor = self.out_proj(self.heads(hidden_states, hidden_states, hidden_states, bias))
        return out, position_bias, None


@register_attention(
    "transformers.models.t5.modeling_t5.T5Attention", "transformers.models.mt5.modeling_mt5.MT5Attention"
)
def _from_t5(module: Any) -> _T5Attention:
    projections = {name: (getattr(module, name).weight, getattr(module, name).bias) for name in "qkv"}
    attention = build(
        _T5Attention, module, projections, module.o, module.n_heads, dropout=module.dropout, tracks_heads=True
    )
    attention.scale = 1.0  # T5 folds it into its weights
    attention.relative_attention_bias = getattr(module, "relative_attention_bias", None)
    # The original's own computation, with the stand-in as self: it reads the embedding and these numbers.
    attention.compute_bias = type(module).compute_bias
    for name in ("is_decoder", "relative_attention_num_buckets", "relative_attention_max_distance"):
        setattr(attention, name, getattr(module, name))
    attention._relative_position_bucket = module._relative_position_bucket
    return attention


class _Table(nn.Module):
    """Stands in for an ``nn.Embedding`` that is never called, only read, so that Torch-Pruning sees its bare parameter."""

    def __init__(self, weight: nn.Parameter) -> None:
        super().__init__()
        self.weight = weight


@register_attention("transformers.models.siglip2.modeling_siglip2.Siglip2VisionEmbeddings")
def _from_siglip2(module: Any) -> nn.Module:
    if isinstance(module.position_embedding, _Table):
        return module  # type: ignore[no-any-return]
    changed = copy.copy(module)
    changed._modules = dict(module._modules) | {"position_embedding": _Table(module.position_embedding.weight)}
    return changed  # type: ignore[no-any-return]


class _FixedPositions(nn.Module):
    """Stands in for M2M100's sinusoids, a buffer that would not get narrower with the rest; here a frozen parameter."""

    def __init__(self, original: Any) -> None:
        super().__init__()
        self.padding_idx = original.padding_idx
        self.ids_of_tokens = original.create_position_ids_from_input_ids
        self.ids_of_states = original.create_position_ids_from_inputs_embeds
        self.weights = nn.Parameter(original.weights.detach().clone(), requires_grad=False)
        self.register_load_state_dict_pre_hook(self._fill)  # type: ignore[no-untyped-call]

    @staticmethod
    def _fill(module: Any, state: dict[str, Any], prefix: str, *_: Any) -> None:
        """Checkpoints do not hold them."""
        state.setdefault(f"{prefix}weights", module.weights.detach())

    def forward(
        self, input_ids: Tensor | None = None, inputs_embeds: Tensor | None = None, past_key_values_length: int = 0
    ) -> Tensor:
        """Positions of tokens."""
        if input_ids is not None:
            ids = self.ids_of_tokens(input_ids, self.padding_idx, past_key_values_length)
        else:
            ids = self.ids_of_states(inputs_embeds, past_key_values_length, self.padding_idx)
        return self.weights[ids.to(self.weights.device)]


@register_attention("transformers.models.m2m_100.modeling_m2m_100.M2M100SinusoidalPositionalEmbedding")
def _from_m2m100(module: Any) -> _FixedPositions:
    return _FixedPositions(module)
