"""The compact tokenizer: every caption fits, reads back, and ends in the highest id."""

from __future__ import annotations

import pytest
import torch

from torch_pruning_mope.data import EmojiTokenizer, emoji_scenes


@pytest.fixture(scope="module")
def tokenizer() -> EmojiTokenizer:
    return EmojiTokenizer()


def test_captions_read_back(tokenizer: EmojiTokenizer) -> None:
    captions = [words for _, words in emoji_scenes("train", 500)]
    tokens = tokenizer(captions)
    assert tokens.shape == (500, 24)
    assert tokens.dtype == torch.int64
    assert [tokenizer.decode(row) for row in tokens] == captions


def test_the_end_has_the_highest_id(tokenizer: EmojiTokenizer) -> None:
    tokens = tokenizer("an owl on blue")
    assert tokens[0].argmax() == 5
    assert tokens.max() == tokenizer.eot_token_id == tokenizer.vocab_size - 1
    assert tokens[0, 0] == tokenizer.sot_token_id
    assert (tokens[0, 6:] == 0).all()


def test_unknown_word(tokenizer: EmojiTokenizer) -> None:
    with pytest.raises(ValueError, match=r"found \['wombat'\] in 'a wombat on blue'\. Use the names in concepts.tsv"):
        tokenizer(["an owl on blue", "a wombat on blue"])


def test_too_long(tokenizer: EmojiTokenizer) -> None:
    with pytest.raises(ValueError, match="at most 22 words; found 23"):
        tokenizer(" ".join(["owl"] * 23))
