"""The losses in loops over Python floats, from their definitions alone."""

import math
from collections.abc import Sequence

from torch import Tensor


def unit(rows: Tensor) -> list[list[float]]:
    return [[x / math.sqrt(sum(y * y for y in row)) for x in row] for row in rows.tolist()]


def similarities(images: Tensor, texts: Tensor, scale: float, bias: float = 0.0) -> list[list[float]]:
    """``[image][caption]``."""
    return [
        [scale * sum(a * b for a, b in zip(image, text, strict=True)) + bias for text in unit(texts)]
        for image in unit(images)
    ]


def softmax(row: Sequence[float]) -> list[float]:
    top = max(row)
    return [math.exp(x - top) / sum(math.exp(y - top) for y in row) for x in row]


def info_nce(images: Tensor, texts: Tensor, scale: float, owner: Sequence[int]) -> float:
    s = similarities(images, texts, scale)
    total = 0.0
    for n, i in enumerate(owner):
        total -= math.log(softmax([row[n] for row in s])[i])
        others = [s[i][m] for m in range(len(owner)) if owner[m] != i]
        total -= math.log(softmax([s[i][n], *others])[0])
    return total / 2 / len(owner)


def sigmoid(images: Tensor, texts: Tensor, scale: float, bias: float, owner: Sequence[int]) -> float:
    total = 0.0
    for i, row in enumerate(similarities(images, texts, scale, bias)):
        for n, x in enumerate(row):
            total += math.log1p(math.exp(-x if owner[n] == i else x))
    return total / len(owner)


def soft(students: list[list[float]], teachers: list[list[float]]) -> float:
    total = 0.0
    for student, teacher in zip(students, teachers, strict=True):
        total -= sum(p * math.log(q) for p, q in zip(softmax(teacher), softmax(student), strict=True))
    return total / len(students)


def transposed(rows: list[list[float]]) -> list[list[float]]:
    return [list(column) for column in zip(*rows, strict=True)]


def similarity(student: tuple[Tensor, Tensor, float], teacher: tuple[Tensor, Tensor, float]) -> float:
    s, t = similarities(*student), similarities(*teacher)
    return (soft(s, t) + soft(transposed(s), transposed(t))) / 2


def features(images: Tensor, texts: Tensor, teacher_images: Tensor, teacher_texts: Tensor) -> float:
    total = 0.0
    for student, teacher in ((images, teacher_images), (texts, teacher_texts)):
        squares = [
            (x - y) ** 2 for a, b in zip(unit(student), unit(teacher), strict=True) for x, y in zip(a, b, strict=True)
        ]
        total += sum(squares) / len(squares) / 2
    return total


def hidden(student: dict[str, dict[int, Tensor]], teacher: dict[str, dict[int, Tensor]]) -> float:
    total = 0.0
    for tower, blocks in student.items():
        for index, states in blocks.items():
            a, b = states.flatten().tolist(), teacher[tower][index].flatten().tolist()
            total += sum((x - y) ** 2 for x, y in zip(a, b, strict=True)) / len(a) / 2
    return total
