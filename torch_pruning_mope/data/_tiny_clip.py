"""The tiny CLIP that ships with the package: 3.8M parameters, and a word-level tokenizer of about a thousand ids."""

import functools
from collections.abc import Sequence
from importlib import resources
from typing import Any

import open_clip
import torch
from jaxtyping import Int
from safetensors.torch import load
from torch import Tensor

from .._io import parse_json
from ._emoji import GRAMMAR_WORDS, concepts

CONTEXT_LENGTH = 24
PAD = 0


@functools.cache
def vocabulary() -> tuple[str, ...]:
    """Returns all words of all captions, sorted; word i has id i + 1."""
    words = {word for concept in concepts() for word in concept.name.split()}
    return tuple(sorted(words | set(GRAMMAR_WORDS)))


class EmojiTokenizer:
    """Turns captions into ids, as open_clip's tokenizers do.

    Ids: 0 pads, then one id per word, then the start, then the end of the text. The end has the highest id because
    open_clip's default pooling reads the text tower at the argmax of the ids.
    """

    def __init__(self) -> None:
        self._ids = {word: index for index, word in enumerate(vocabulary(), start=1)}
        self.context_length = CONTEXT_LENGTH
        self.sot_token_id = len(self._ids) + 1
        self.eot_token_id = len(self._ids) + 2
        self.vocab_size = len(self._ids) + 3

    def __call__(self, texts: str | Sequence[str]) -> Int[Tensor, "B 24"]:
        """Returns ids: start, words, end, padding. Unknown words and captions over 22 words raise ValueErrors."""
        texts = [texts] if isinstance(texts, str) else list(texts)
        return torch.tensor([self._encode(text) for text in texts], dtype=torch.long).reshape(-1, CONTEXT_LENGTH)

    def _encode(self, text: str) -> list[int]:
        words = text.lower().split()
        unknown = [word for word in words if word not in self._ids]
        if unknown:
            raise ValueError(
                f"texts must consist of the {len(self._ids)} words of the emoji scenes; found {unknown} in {text!r}. Use the "
                f"names in concepts.tsv and the words {', '.join(GRAMMAR_WORDS)}."
            )
        if len(words) > CONTEXT_LENGTH - 2:
            raise ValueError(f"texts must have at most {CONTEXT_LENGTH - 2} words; found {len(words)} in {text!r}.")
        ids = [self.sot_token_id, *(self._ids[word] for word in words), self.eot_token_id]
        return ids + [PAD] * (CONTEXT_LENGTH - len(ids))

    def decode(self, tokens: Int[Tensor, " context"] | Sequence[int]) -> str:
        """Returns the words of one row of ids, without start, end and padding."""
        words, ids = vocabulary(), tokens.tolist() if isinstance(tokens, Tensor) else tokens
        return " ".join(words[index - 1] for index in ids if 0 < index < self.sot_token_id)


def tiny_clip_config() -> dict[str, Any]:
    """Returns the architecture, in the form of open_clip's model configs: `embed_dim`, `vision_cfg`, `text_cfg`."""
    config: dict[str, Any] = parse_json((resources.files(__package__) / "assets" / "tiny_clip.json").read_text("utf-8"))
    trained, found = config["text_cfg"]["vocab_size"], EmojiTokenizer().vocab_size
    if trained != found:
        raise ValueError(
            f"concepts.tsv must give the tiny CLIP a vocabulary of {trained} ids; found {found}. Restore the file or retrain."
        )
    return config


def build_tiny_clip() -> open_clip.CLIP:
    """Returns the architecture with fresh random weights, in float32."""
    config = tiny_clip_config()
    return open_clip.CLIP(
        embed_dim=config["embed_dim"],
        vision_cfg=open_clip.CLIPVisionCfg(**config["vision_cfg"]),
        text_cfg=open_clip.CLIPTextCfg(**config["text_cfg"]),
    )


def load_tiny_clip() -> open_clip.CLIP:
    """Returns the trained model, in float32 and evaluation mode; its inputs are those of `emoji_pairs`."""
    model = build_tiny_clip()
    weights = load((resources.files(__package__) / "assets" / "tiny_clip.safetensors").read_bytes())
    model.load_state_dict({name: tensor.to(torch.float32) for name, tensor in weights.items()}, strict=True)
    return model.eval()
