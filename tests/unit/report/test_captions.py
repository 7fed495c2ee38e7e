"""Ids read back as words, by each kind of tokenizer."""

import pytest
import torch
from open_clip import SimpleTokenizer

from torch_pruning_mope import EmojiTokenizer
from torch_pruning_mope.report._captions import caption_of


class Special:
    """As transformers' tokenizers."""

    all_special_ids = (0, 9)

    def decode(self, ids: list[int], skip_special_tokens: bool = False) -> str:
        return " ".join(f"w{i}" for i in ids if not (skip_special_tokens and i in self.all_special_ids))


class Wrapped:
    """As open_clip wraps those."""

    tokenizer = Special()


@pytest.mark.parametrize("tokenizer", [EmojiTokenizer(), SimpleTokenizer()])
def test_captions_read_back(tokenizer: EmojiTokenizer | SimpleTokenizer) -> None:
    words = "a red apple to the left of a guitar on purple"
    assert caption_of(tokenizer([words])[0], tokenizer) == words


@pytest.mark.parametrize("tokenizer", [Special(), Wrapped()])
def test_special_tokens_of_transformers_are_left_out(tokenizer: Special | Wrapped) -> None:
    assert caption_of(torch.tensor([9, 4, 5, 9, 0, 0]), tokenizer) == "w4 w5"


@pytest.mark.parametrize("tokenizer", [None, object()])
def test_without_a_tokenizer_ids_before_the_padding_are_shown(tokenizer: object) -> None:
    assert caption_of(torch.tensor([9, 4, 5, 8, 0, 0]), tokenizer) == "tokens 9 4 5 8"
    assert caption_of(torch.tensor([9, 4, 5]), tokenizer) == "tokens 9 4 5"
