"""Checks of the losses' inputs."""

import math

import torch
from jaxtyping import Int
from torch import Tensor


def check_embeddings(images: Tensor, texts: Tensor, whose: str = "") -> None:
    """Raises ValueError unless both are rows of one embedding space; ``whose`` is a prefix of their names."""
    for name, rows in ((f"{whose}images", images), (f"{whose}texts", texts)):
        if rows.ndim != 2 or not rows.is_floating_point():
            raise ValueError(
                f"{name} must be embeddings, floats [rows, embedding]; found {rows.dtype} {list(rows.shape)}. "
                "Pass what the tower returns, one row per image or caption."
            )
    if images.shape[1] != texts.shape[1]:
        raise ValueError(
            f"{whose}images and {whose}texts must be embeddings of the same size; found {images.shape[1]} and "
            f"{texts.shape[1]}. Pass both towers' outputs in the joint space, after their projections."
        )


def check_counterparts(images: Tensor, texts: Tensor, teacher_images: Tensor, teacher_texts: Tensor) -> None:
    """Raises ValueError unless the teacher has as many images and captions as the student."""
    check_embeddings(images, texts)
    check_embeddings(teacher_images, teacher_texts, "teacher_")
    for name, student, teacher in (("images", images, teacher_images), ("texts", texts, teacher_texts)):
        if len(student) != len(teacher):
            raise ValueError(
                f"teacher_{name} must have as many rows as {name}; found {len(teacher)} and {len(student)}. "
                "Give teacher and student the same batch, in the same order."
            )


def owners(image_index: Tensor | None, images: Tensor, texts: Tensor) -> Int[Tensor, "N"]:
    """Position of each caption's image among this rank's, on the embeddings' device; ValueError if it does not fit."""
    if image_index is None:
        if len(images) != len(texts):
            raise ValueError(
                f"image_index is required when images ({len(images)}) and captions ({len(texts)}) differ in number: give "
                "the image that each caption describes."
            )
        return torch.arange(len(texts), device=texts.device)
    if image_index.shape != texts.shape[:1] or image_index.is_floating_point() or image_index.dtype == torch.bool:
        raise ValueError(
            f"image_index must hold one integer per caption; found {image_index.dtype} {list(image_index.shape)} for "
            f"{len(texts)} captions. Give the image of each caption."
        )
    low, high = (int(image_index.min()), int(image_index.max())) if len(texts) else (0, -1)
    if low < 0 or high >= len(images):
        raise ValueError(
            f"image_index must lie in 0..{len(images) - 1}; found {low}..{high}. Count this rank's own images from zero: "
            "all captions of an image are on the image's rank."
        )
    return image_index.to(texts.device, torch.long)


def scalar(value: float | Tensor, name: str, like: Tensor, *, positive: bool = True) -> Tensor:
    """A temperature or bias as a tensor without dimensions; values of tensors are not checked, as that waits for the device."""
    if isinstance(value, Tensor):
        if value.numel() != 1:
            raise ValueError(
                f"{name} must be one number; found a tensor of shape {list(value.shape)}. Pass the model's own, one for all."
            )
        return value.to(like.device).reshape(())
    if not math.isfinite(value) or (positive and value <= 0):
        kind = "a positive number" if positive else "a finite number"
        raise ValueError(f"{name} must be {kind}; found {value}. CLIP's is logit_scale.exp(), 1 to 100.")
    # In float32 at least: 14.29 is 14.3125 in bfloat16.
    return torch.tensor(float(value), device=like.device, dtype=torch.promote_types(like.dtype, torch.float32))
