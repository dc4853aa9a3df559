"""The bound of characters per token is never wrong, and there is none where it could be."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from router.text.token_bound import max_chars_per_token

ALPHABET = {token: i for i, token in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
BYTES = {f"<0x{byte:02X}>": byte for byte in range(256)}
GREEK = "\u03c9\u0313\u0300\u0345"  # an omega and three marks, which compose to one character


def byte_level(**parts: Any) -> Tokenizer:
    vocab = ALPHABET | {"aa": 256, "aaa": 257, "aaaa": 258}
    tokenizer = Tokenizer(models.BPE(vocab, [("a", "a"), ("aa", "a"), ("aa", "aa")]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|end|>"])
    for name, part in parts.items():
        setattr(tokenizer, name, part)
    return tokenizer


def fallback(*, fuse_unk: bool = True) -> Tokenizer:
    model = models.BPE(BYTES | {"▁": 256, "<unk>": 257}, [], byte_fallback=True, fuse_unk=fuse_unk)
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    return tokenizer


def unknown(**options: Any) -> Tokenizer:
    return Tokenizer(models.BPE({"a": 0, "<unk>": 1}, [], **options))


def bound_of(tokenizer: Tokenizer) -> int | None:
    return max_chars_per_token(json.loads(tokenizer.to_str()))


split = pre_tokenizers.Sequence(
    [
        pre_tokenizers.Split(Regex(r"\s+|\w+"), behavior="isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ]
)
BOUNDED = {
    "byte level": (byte_level(), 7),
    "split": (byte_level(pre_tokenizer=split), 7),
    "nfc": (byte_level(normalizer=normalizers.NFC()), 4 * 7),
    "nfkc": (byte_level(normalizer=normalizers.NFKC()), 4 * 7),
    "byte fallback": (fallback(), 6),
    "unknown ones": (unknown(unk_token="<unk>"), 5),
}
texts = st.lists(st.sampled_from(["a", " ", "\n", "é", "😀", GREEK, "ﬁ", "<|end|>", "한"])).map(
    "".join
)


@pytest.mark.parametrize("kind", BOUNDED)
@settings(max_examples=30)
@given(text=texts | st.text())
def test_no_text_has_fewer_tokens_than_the_bound_says(kind: str, text: str) -> None:
    tokenizer, bound = BOUNDED[kind]
    assert bound_of(tokenizer) == bound
    for each in (text, text * 20):
        num_tokens = len(tokenizer.encode(each, add_special_tokens=False).ids)
        assert len(each) <= bound * num_tokens


def stripping() -> Tokenizer:
    tokenizer = byte_level()
    spec = json.loads(tokenizer.to_str())
    spec["added_tokens"][0]["rstrip"] = True
    return Tokenizer.from_str(json.dumps(spec))


def removing() -> Tokenizer:
    split = pre_tokenizers.Split(" ", behavior="removed")
    return byte_level(
        pre_tokenizer=pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(False)])
    )


@pytest.mark.parametrize(
    "tokenizer",
    [
        stripping(),
        removing(),
        byte_level(normalizer=normalizers.Strip()),
        byte_level(normalizer=normalizers.Replace("  ", " ")),
        byte_level(normalizer=normalizers.Replace(Regex(" +"), " ")),
        byte_level(normalizer=normalizers.StripAccents()),
        byte_level(pre_tokenizer=pre_tokenizers.WhitespaceSplit()),
        unknown(),  # passes over what it does not know
        unknown(unk_token="<unk>", fuse_unk=True),
        Tokenizer(models.WordPiece({"[UNK]": 0}, unk_token="[UNK]")),
        Tokenizer(models.Unigram([("<unk>", 0.0), ("a", -1.0)], 0, False)),
    ],
)
def test_where_a_token_may_stand_for_any_number_of_characters_there_is_no_bound(
    tokenizer: Tokenizer,
) -> None:
    assert bound_of(tokenizer) is None
