"""What responses are worth in tests: verl loads this file by its path, and calls `compute_score`."""

from __future__ import annotations

from typing import Any


def compute_score(data_source: str, solution_str: str, ground_truth: str, **_: Any) -> dict[str, float]:
    """Every digit counts a little, the right sum counts much; so every group has a spread."""
    digits, right = sum(character.isdigit() for character in solution_str), ground_truth in solution_str
    return {"score": digits / 8 + right, "acc": float(right), "digits": float(digits)}


def exact(data_source: str, solution_str: str, ground_truth: str, **_: Any) -> dict[str, float]:
    """1 for the right sum and nothing else."""
    return {"score": float(solution_str.strip() == ground_truth)}
