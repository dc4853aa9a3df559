"""Least squares for a handful of unknowns, without numpy: schedulers and planners are pure Python."""

from __future__ import annotations

from collections.abc import Sequence


def least_squares(rows: Sequence[Sequence[float]]) -> list[float] | None:
    """x that makes every row . x nearest to 1; None where the rows do not determine it."""
    width = len(rows[0])
    # The normal equations, with their right side as last column, by Gauss and Jordan.
    matrix = [
        [sum(row[i] * row[j] for row in rows) for j in range(width)] + [sum(row[i] for row in rows)]
        for i in range(width)
    ]
    for pivot in range(width):
        best = max(range(pivot, width), key=lambda i: abs(matrix[i][pivot]))
        matrix[pivot], matrix[best] = matrix[best], matrix[pivot]
        head = matrix[pivot][pivot]
        if abs(head) < 1e-12:
            return None
        matrix[pivot] = [value / head for value in matrix[pivot]]
        for i in range(width):
            if i != pivot and (factor := matrix[i][pivot]):
                matrix[i] = [a - factor * b for a, b in zip(matrix[i], matrix[pivot], strict=True)]
    return [row[width] for row in matrix]


def dot(a: Sequence[float], b: Sequence[float]) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True))
