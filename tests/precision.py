"""Double precision for a while."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def float64() -> Iterator[None]:
    """Tensors made from numbers hold them exactly; before and after they are what they were."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
