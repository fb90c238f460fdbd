"""Tensors of verl as padded arrays: a row a response, a column a token."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from unipo_hooks.record import Array


def to_array(tensor: torch.Tensor) -> Array:
    """A tensor on the host as an array; bfloat16 and float16 become float32, exactly; a jagged one is padded with 0."""
    if tensor.is_nested:
        tensor = tensor.to_padded_tensor(0)
    array: Array = (tensor.float() if tensor.dtype in (torch.bfloat16, torch.float16) else tensor).numpy()
    return array


def padded(values: Array, width: int, fill: Any) -> Array:
    """(B, width) of (B, any width): cut or filled up on the right."""
    rows, found = values.shape
    if found >= width:
        return values[:, :width]
    out = np.full((rows, width), fill, values.dtype)
    out[:, :found] = values
    return out
