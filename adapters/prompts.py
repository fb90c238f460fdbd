"""Conversations of prompts as a bundle keeps them: JSON, whatever they hold."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

_EMBEDDED = re.compile(r"data:([\w.+-]+/[\w.+-]+);base64,[A-Za-z0-9+/=]+")
"""An image inside a URL: hundreds of kilobytes of text."""


def as_messages(prompts: Sequence[Any]) -> list[str] | None:
    """Conversations as JSON, an image as a marker; None where prompts are plain text."""
    if all(isinstance(prompt, str) for prompt in prompts):
        return None
    return [_EMBEDDED.sub(r"⟨\1⟩", json.dumps(prompt, ensure_ascii=False, default=_marker)) for prompt in prompts]


def _marker(value: Any) -> str:
    """What stands in a message for what JSON cannot hold: `⟨image, 640 × 480⟩`."""
    if isinstance(size := getattr(value, "size", None), tuple):  # an image of Pillow's
        return f"⟨image, {' × '.join(map(str, size))}⟩"
    if isinstance(value, bytes):
        return f"⟨{len(value)} bytes⟩"
    shape = getattr(value, "shape", None)
    return f"⟨{type(value).__name__}{'' if shape is None else ', ' + ' × '.join(map(str, shape))}⟩"
