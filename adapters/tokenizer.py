"""What a tokenizer or processor says of token ids, whichever trainer it comes from."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any


def decoder(processing_class: Any) -> Callable[[list[int]], str]:
    """Token ids → text with a tokenizer of our own.

    A copy, because it decodes on another thread: a fast tokenizer that is borrowed there would refuse the trainer's
    own call ("Already borrowed").
    """
    tokenizer = copy.deepcopy(getattr(processing_class, "tokenizer", processing_class))

    def decode(ids: list[int]) -> str:
        return str(tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))

    return decode


def placeholders(processing_class: Any) -> dict[int, str]:
    """Token ids a processor puts where an image, a video or a sound is → what stands there; none for a tokenizer.

    `image_token_ids` is what transformers 5 tells the kind of a token by; before it there was `image_token_id` alone.
    """
    found: dict[int, str] = {}
    for name in ("image", "video", "audio"):
        ids = getattr(processing_class, f"{name}_token_ids", None) or [
            getattr(processing_class, f"{name}_token_id", None)
        ]
        found |= {token: name for token in ids if isinstance(token, int)}
    return found
