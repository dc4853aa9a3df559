"""Incremental decoding gives what decoding the whole gives, however the tokens come."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import pairwise

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers

from baton.errors import ConfigError
from router.text.detokenizer import Detokenizer
from router.text.token_bytes import TokenBytes, read_decoder

WORDS = ["hello", "wor", "ld", "é", "日本", "😀"]


def byte_level() -> Tokenizer:
    """Ids of the 256 bytes, then some longer tokens, some of which end within a character."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    encode = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str
    longer = ["".join(piece for piece, _ in encode(word)) for word in [*WORDS, " hello", " "]]
    longer.append(longer[5][:2])  # half of an emoji
    vocab = {token: i for i, token in enumerate(dict.fromkeys(alphabet + longer))}
    tokenizer = Tokenizer(models.BPE(vocab, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return with_added(tokenizer)


def llama() -> Tokenizer:
    """As Llama 2's: marks for spaces, bytes as fallback, one leading space stripped."""
    tokenizer = Tokenizer(models.BPE(sentencepiece_vocab(), [], byte_fallback=True))
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    return with_added(tokenizer)


def metaspace() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(sentencepiece_vocab(with_bytes=False), []))
    tokenizer.decoder = decoders.Metaspace()
    return with_added(tokenizer)


def sentencepiece_vocab(with_bytes: bool = True) -> dict[str, int]:
    pieces = [f"<0x{byte:02X}>" for byte in range(256)] if with_bytes else []
    pieces += ["▁", "▁▁", "▁hello", *WORDS, *"abc,."]
    return {piece: i for i, piece in enumerate(pieces)}


def with_added(tokenizer: Tokenizer) -> Tokenizer:
    tokenizer.add_special_tokens(["<s>", "</s>"])
    tokenizer.add_tokens([AddedToken("<tool call>"), AddedToken("名前é")])
    return tokenizer


def id_of(name: str, token: str) -> int:
    token_id: int = TOKENIZERS[name].get_vocab()[token]
    return token_id


TOKENIZERS = {"byte_level": byte_level(), "llama": llama(), "metaspace": metaspace()}


def token_bytes_of(tokenizer: Tokenizer) -> TokenBytes:
    return TokenBytes(tokenizer, read_decoder(json.loads(tokenizer.to_str())["decoder"]))


TOKEN_BYTES = {name: token_bytes_of(tokenizer) for name, tokenizer in TOKENIZERS.items()}


def streamed(
    name: str, prompt: Sequence[int], output: Sequence[int], cuts: Sequence[int] = ()
) -> str:
    """The output's text, pushed in pieces that end at `cuts`, token by token without any."""
    detokenizer = Detokenizer(TOKEN_BYTES[name], prompt)
    edges = sorted({0, len(output), *(cut % (len(output) + 1) for cut in cuts)})
    if not cuts:
        edges = list(range(len(output) + 1))
    pieces = [detokenizer.push(output[a:b]) for a, b in pairwise(edges)]
    return "".join(pieces) + detokenizer.flush()


def ids_of(name: str, text: str) -> list[int]:
    """Tokens whose text is `text`: characters where the vocabulary has them, else bytes."""
    vocab = TOKENIZERS[name].get_vocab()
    ids: list[int] = []
    for char in text.replace(" ", "▁"):
        if char in vocab:
            ids.append(vocab[char])
        else:
            ids += [vocab[f"<0x{byte:02X}>"] for byte in char.encode()]
    return ids


@settings(deadline=None, derandomize=True, max_examples=300)
@given(
    st.lists(st.integers(0, 279), max_size=30),
    st.lists(st.integers(0, 30), max_size=4),
)
@example([id_of("byte_level", "名前é")], [])
def test_any_byte_level_tokens_decode_as_the_whole(ids: list[int], cuts: list[int]) -> None:
    """Also those that are no UTF-8, special tokens, and ids that the tokenizer does not have."""
    assert streamed("byte_level", (), ids, cuts) == TOKENIZERS["byte_level"].decode(ids)


@settings(deadline=None, derandomize=True, max_examples=300)
@given(st.lists(st.integers(0, 30), max_size=20), st.lists(st.integers(0, 20), max_size=4))
def test_any_metaspace_tokens_decode_as_the_whole(ids: list[int], cuts: list[int]) -> None:
    assert streamed("metaspace", (), ids, cuts) == TOKENIZERS["metaspace"].decode(ids)


@settings(deadline=None, derandomize=True, max_examples=300)
@given(st.text("abc hello日本é😀\n\U0001f468\u200d\U0001f469", max_size=20))
def test_any_text_through_byte_fallback_decodes_as_the_whole(text: str) -> None:
    ids = ids_of("llama", text)
    assert streamed("llama", (), ids) == TOKENIZERS["llama"].decode(ids)
    assert streamed("llama", (), ids) == text.removeprefix(" ")


@settings(deadline=None, derandomize=True, max_examples=200)
@given(st.text(max_size=20), st.integers(0, 80))
def test_any_text_is_resumed_after_any_token(text: str, cut: int) -> None:
    """A prompt's end, or a router's death, may lie within a character."""
    for name, ids in (
        ("byte_level", byte_ids(text)),
        ("llama", ids_of("llama", text)),
    ):
        cut %= len(ids) + 1
        whole = Detokenizer(TOKEN_BYTES[name], ())
        before, after = whole.push(ids[:cut]), whole.push(ids[cut:]) + whole.flush()
        assert before + after == (text if name == "byte_level" else text.removeprefix(" "))
        assert streamed(name, ids[:cut], ids[cut:]) == after
        resumed = Detokenizer(TOKEN_BYTES[name], (), ids[:cut])
        assert resumed.push(ids[cut:]) + resumed.flush() == after


def byte_ids(text: str) -> list[int]:
    return [BYTE_IDS[bytes([byte])] for byte in text.encode()]


BYTE_IDS = {TOKEN_BYTES["byte_level"].visible(token_id): token_id for token_id in range(256)}


def test_a_character_comes_with_its_last_byte() -> None:
    detokenizer = Detokenizer(TOKEN_BYTES["byte_level"], ())
    assert [detokenizer.push((i,)) for i in byte_ids("a😀é")] == ["a", "", "", "", "😀", "", "é"]
    assert detokenizer.flush() == ""


def test_an_incomplete_character_is_flushed_as_one_replacement() -> None:
    detokenizer = Detokenizer(TOKEN_BYTES["byte_level"], ())
    assert detokenizer.push(byte_ids("x😀")[:-1]) == "x"
    assert detokenizer.flush() == "\ufffd"


@pytest.mark.parametrize("name", ["llama", "metaspace"])
def test_a_leading_space_stays_after_a_prompt_and_goes_without_one(name: str) -> None:
    hello, start = id_of(name, "▁hello"), id_of(name, "<s>")
    assert streamed(name, (), [hello, hello]) == "hello hello"
    assert streamed(name, (start,), [hello]) == "hello"
    assert streamed(name, (start, hello), [hello]) == " hello"


def test_special_tokens_have_a_name_but_no_text() -> None:
    tokens = TOKEN_BYTES["byte_level"]
    special = id_of("byte_level", "</s>")
    assert (tokens.visible(special), tokens.named(special)) == (b"", b"</s>")
    added = id_of("byte_level", "<tool call>")
    assert (tokens.visible(added), tokens.named(added)) == (b"<tool call>",) * 2
    assert tokens.named(100_000) == b""


def test_a_model_without_a_tokenizer_has_no_text() -> None:
    detokenizer = Detokenizer(None, (1, 2))
    assert detokenizer.push((3,)) + detokenizer.flush() == ""


@pytest.mark.parametrize(
    "decoder",
    [
        None,
        {"type": "WordPiece", "prefix": "##"},
        {
            "type": "Sequence",
            "decoders": [{"type": "Strip", "content": " ", "start": 1, "stop": 0}],
        },
        json.loads(decoders.Sequence([decoders.Replace(Regex("a+"), "b")]).__getstate__()),
    ],
)
def test_a_decoder_that_is_no_concatenation_is_refused(decoder: dict[str, object] | None) -> None:
    with pytest.raises(ConfigError) as caught:
        read_decoder(decoder)
    assert caught.value.field == "tokenizer.json.decoder"
