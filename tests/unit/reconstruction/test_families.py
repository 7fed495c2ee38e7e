"""Reconstruction of one small random model of every kind, in double precision."""

import copy

import pytest
import torch

import torch_pruning_mope as mope
from torch_pruning_mope import DualEncoder

from ..zoo import FAMILIES
from .oracle import pruned, reconstruct_slowly

KINDS = [
    "open_clip ViT", "open_clip ViT, attentional pool", "open_clip ResNet", "CoCa", "SigLIP", "EVA02",
    "EVA02-E", "ConvNeXt", "Swin", "RoBERTa", "mT5", "transformers CLIP",
]  # fmt: skip
"""Taken apart and not; pre-norm, post-norm, no stream; linear layers and convolutions; one call and several."""
assert set(KINDS) <= set(FAMILIES)


@pytest.mark.parametrize("name", KINDS)
def test_reconstruction_is_the_least_squares_of_whole_passes(name: str) -> None:
    student, dense, pairs = pruned(name, 12)
    slow = DualEncoder(copy.deepcopy(student.model))
    frozen = copy.deepcopy(dense.model.state_dict())
    report = mope.reconstruct(student, dense, pairs, ridge=1e-2, projection=False, batch_size=5, progress=False)
    reconstruct_slowly(slow, dense, pairs, 1e-2)
    for key, value in slow.model.state_dict().items():
        torch.testing.assert_close(student.model.state_dict()[key], value, rtol=1e-8, atol=1e-8, msg=key)
    assert any(layer.refitted for layer in report.layers)
    for layer in report.layers:
        assert layer.after < layer.before if layer.refitted else layer.after == layer.before
    assert all(torch.equal(value, frozen[key]) for key, value in dense.model.state_dict().items())
