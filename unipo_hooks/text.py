"""The text of every token, such that joined they are the text of the response.

Tokenizers do not decode token by token. A character may be spread over several tokens, and a token alone shows U+FFFD
for its share of it; SentencePiece drops the space before the first token of what it decodes; some decoders put text
between tokens. Knowing nothing but `decode`, `TokenText` looks every id up once, in the middle of a text, decodes
together the few tokens that share a character, and compares every row with the tokenizer's own decode of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import pyarrow as pa

_REPLACEMENT = "\ufffd"
_ANCHOR_SEARCH = 4096
"""Ids looked at for an anchor: past the special tokens, the single bytes and the single characters of a vocabulary."""
_WAITING = 64
"""Tokens decoded together at most while waiting for a whole character: long rows of garbage stay linear."""
_RUN_WAITING = 16
"""The same where what is waited for is remembered; a character has at most 4 bytes."""
_MEMO_SIZE = 32768
"""Groups of waiting tokens remembered: some 10 MB at most."""

Decode = Callable[[list[int]], str]


class TokenText:
    """Text of token ids, with what was looked up kept from call to call. For use from one thread at a time.

    `decode` turns ids into text and must keep special tokens: with transformers,
    `lambda ids: tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)`.
    """

    def __init__(self, decode: Decode) -> None:
        self._decode_ids = decode
        self._pieces: dict[int, str] = {}
        self._first_pieces: dict[int, str] = {}
        self._memo: dict[tuple[int, ...], list[str]] = {}
        self._anchor: tuple[list[int], str] | None = None

    def strings(self, rows: Sequence[npt.NDArray[np.integer]]) -> pa.DictionaryArray:
        """Text of every token of `rows`, one after the other, as a dictionary of strings with int32 indices.

        Each row is the ids of one response, `[length]`, of any integer type; rows may be empty. The texts of a row
        joined equal `decode(row)`. A character spread over several tokens is the text of the token that completes it,
        the others have none; what never becomes a character is U+FFFD, on the last token of the broken sequence.
        An id the tokenizer decodes to nothing has no text. Where `decode` raises there is nothing to be equal to: the
        ids it fails on read `⟨id 123⟩`, the rest of the row has its text. Never raises because `decode` does.
        """
        flat = np.concatenate([np.asarray(row, dtype=np.int64) for row in rows] or [np.empty(0, np.int64)])
        unique, inverse = np.unique(flat, return_inverse=True)
        pieces = [self._piece(token) for token in unique.tolist()]
        table = _Table()
        codes = table.codes(pieces)[inverse]
        partial = np.array([_REPLACEMENT in piece for piece in pieces], dtype=bool)[inverse]
        start = 0
        for row in rows:
            stop = start + len(row)
            if stop > start:
                self._settle(flat[start:stop].tolist(), codes[start:stop], partial[start:stop], table)
            start = stop
        return pa.DictionaryArray.from_arrays(pa.array(codes, pa.int32()), pa.array(table.texts, pa.string()))

    def _settle(
        self, ids: list[int], codes: npt.NDArray[np.int32], partial: npt.NDArray[np.bool_], table: _Table
    ) -> None:
        """Correct the codes of one row in place: its first token, its split characters, and whatever else differs."""
        codes[0] = table.code(self._first_piece(ids[0]))
        for start, stop in _true_runs(partial):
            codes[start:stop] = table.codes(self._run(ids[start:stop], start == 0))
        target = self._decode(ids)
        if target is not None and table.join(codes) != target:
            codes[:] = table.codes(self._spread(ids, target))

    def _first_piece(self, token: int) -> str:
        """Text of a token at the start of a text."""
        piece = self._first_pieces.get(token)
        if piece is None:
            text = self._decode([token])
            piece = self._first_pieces[token] = f"⟨id {token}⟩" if text is None else text
        return piece

    def _piece(self, token: int) -> str:
        """Text of a token in the middle of a text."""
        piece = self._pieces.get(token)
        if piece is None:
            text = self._behind([token])
            piece = self._pieces[token] = self._first_piece(token) if text is None else text
        return piece

    def _behind(self, ids: list[int]) -> str | None:
        """Text of tokens in the middle of a text; None where the tokenizer raises or changes what stands before."""
        context, before = self._context()
        text = self._decode(context + ids)
        return None if text is None or not text.startswith(before) else text[len(before) :]

    def _run(self, ids: list[int], first: bool) -> list[str]:
        """Texts of neighbours that each hold part of a character; `first` where they open the row.

        Tokens wait until together they end in a whole character. The few characters of a language come again and
        again, so what waiting tokens came to is remembered.
        """
        out: list[str] = []
        start = 0
        for stop in range(1, len(ids) + 1):
            waiting = tuple(ids[start:stop])
            opening = first and start == 0
            decode = self._decode if opening else self._behind
            texts = None if opening else self._memo.get(waiting)
            if texts is None:
                texts = _share(waiting, decode, final=len(waiting) == _RUN_WAITING)
                if not opening:
                    if len(self._memo) >= _MEMO_SIZE:
                        self._memo.clear()
                    self._memo[waiting] = texts
            if not texts and stop == len(ids):
                texts = _share(waiting, decode, final=True)
            if texts:
                out += texts
                start = stop
        return out

    def _spread(self, ids: list[int], target: str) -> list[str]:
        """Cut `target`, the text of a row, into one text a token, whatever the tokenizer does.

        Waiting tokens are decoded behind those settled last, and settled when they end in a whole character that
        `target` has at this place.
        """
        out: list[str] = []
        texts: list[str] = []
        context: list[int] = []
        before = ""
        done = start = 0
        for stop in range(1, len(ids) + 1):
            text = self._decode(context + ids[start:stop]) or ""
            text = text[len(before) :] if text.startswith(before) else ""
            texts.append(text)
            if _whole(text) and target.startswith(text, done):
                size = len(text)
            elif len(texts) == _WAITING:
                size = _common(text, target[done : done + len(text)])
            else:
                continue
            out += _cut(texts, target[done : done + size])
            context = ids[start:stop]
            before = self._decode(context) or ""
            texts, start, done = [], stop, done + size
        if texts:
            return out + _cut(texts, target[done:])
        out[-1] += target[done:]
        return out

    def _context(self) -> tuple[list[int], str]:
        """An id to decode others behind, and its own text; no id where the vocabulary has none that will do.

        A word or part of one, as it is neither a special token, nor a byte that may join its neighbours; a single
        letter in a vocabulary of characters.
        """
        if self._anchor is None:
            self._anchor = [], ""
            for token in range(_ANCHOR_SEARCH):
                text = self._decode([token]) or ""
                word = text.strip()
                if word.isalnum() and len(word) > 1:
                    self._anchor = [token], text
                    break
                if word.isalnum() and not self._anchor[0]:
                    self._anchor = [token], text
        return self._anchor

    def _decode(self, ids: list[int]) -> str | None:
        """The tokenizer's text of `ids`; None where it raises, as some do for ids outside the vocabulary."""
        try:
            return self._decode_ids(ids)
        except Exception:  # whatever a tokenizer raises, capture goes on
            return None


class _Table:
    """Strings numbered in the order they came."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self._codes: dict[str, int] = {}

    def code(self, text: str) -> int:
        code = self._codes.setdefault(text, len(self.texts))
        if code == len(self.texts):
            self.texts.append(text)
        return code

    def codes(self, texts: list[str]) -> npt.NDArray[np.int32]:
        return np.array([self.code(text) for text in texts], dtype=np.int32)

    def join(self, codes: npt.NDArray[np.int32]) -> str:
        return "".join([self.texts[code] for code in codes.tolist()])


def _cut(texts: list[str], target: str) -> list[str]:
    """Cut `target` after what each of `texts` has in common with it; `texts[i]` is the decode of i + 1 tokens.

    U+FFFD at the end of a text that the next token does not lengthen is the same broken sequence: it is the next's.
    """
    ends = [0]
    for text, following in pairwise(texts):
        end = _common(text, target)
        if text.endswith(_REPLACEMENT) and len(following) == len(text):
            end = min(end, len(text) - 1)
        ends.append(max(end, ends[-1]))
    ends.append(len(target))
    return [target[start:stop] for start, stop in pairwise(ends)]


def _share(waiting: tuple[int, ...], decode: Callable[[list[int]], str | None], final: bool) -> list[str]:
    """Texts of tokens that share characters; none yet where they do not end in a whole one and are not `final`."""
    ids = list(waiting)
    text = decode(ids) or ""
    if not final and not _whole(text):
        return []
    return _cut([decode(ids[:stop]) or "" for stop in range(1, len(ids))] + [text], text)


def _whole(text: str) -> bool:
    """Whether a text ends in a whole character."""
    return text != "" and not text.endswith(_REPLACEMENT)


def _common(a: str, b: str) -> int:
    """Length of the common prefix."""
    if b.startswith(a):
        return len(a)
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def _true_runs(mask: npt.NDArray[np.bool_]) -> Iterator[tuple[int, int]]:
    """Half-open ranges in which `mask` is true."""
    at = np.flatnonzero(mask)
    if len(at):
        for run in np.split(at, np.flatnonzero(np.diff(at) > 1) + 1):
            yield int(run[0]), int(run[-1]) + 1
