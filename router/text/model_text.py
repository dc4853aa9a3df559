"""The text side of one model: encode, chat template, decode, and what its files say of sampling.

Read from a Hugging Face checkpoint folder. Knows no request and no network. All methods are
synchronous and may be called from any thread; `encode` releases the interpreter lock, so the caller
runs it for long prompts in a thread.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from tokenizers import Tokenizer

from baton.errors import ConfigError, InvalidArgument
from router.request import Message
from router.text.checkpoint import CheckpointConfig, read_checkpoint_config, read_json
from router.text.detokenizer import Detokenizer
from router.text.template import ChatTemplate
from router.text.token_bound import max_chars_per_token
from router.text.token_bytes import TokenBytes, read_decoder
from router.text.tokenizer_config import read_template, read_tokenizer_config
from router.validation import ModelLimits, check_prompt_length, check_text_length

log = logging.getLogger(__name__)

# Files of which one without tokenizer.json says that a tokenizer is there, but in another format.
_OTHER_TOKENIZERS = ("tokenizer.model", "tokenizer_config.json", "vocab.json", "tekken.json")


class ModelText:
    """A folder without a tokenizer gives one that knows only token ids: `has_tokenizer` is False,
    and every use of text is an `InvalidArgument`. `template` may be what is wrong with it: chats are
    refused then, and everything else is served."""

    def __init__(
        self,
        config: CheckpointConfig,
        tokenizer: Tokenizer | None = None,
        token_bytes: TokenBytes | None = None,
        template: ChatTemplate | ConfigError | None = None,
        max_chars_per_token: int | None = None,
    ) -> None:
        self.config = config
        self._tokenizer = tokenizer
        self._token_bytes = token_bytes
        self._template = template
        self._max_chars_per_token = max_chars_per_token

    @classmethod
    def load(cls, folder: Path | str) -> ModelText:
        """Raises `ConfigError` naming the file that is missing or wrong."""
        folder = Path(folder)
        config = read_checkpoint_config(folder)
        if not (folder / "tokenizer.json").exists():
            _refuse_other_tokenizers(folder)
            return cls(config)
        spec = read_json(folder / "tokenizer.json")
        tokenizer = _read_tokenizer(folder / "tokenizer.json")
        token_bytes = TokenBytes(tokenizer, read_decoder(spec.get("decoder")))
        special_tokens, tokenizer_config = read_tokenizer_config(folder)
        end = tokenizer.token_to_id(special_tokens.get("eos_token", ""))
        if end is not None and end < config.vocab_size:
            config = replace(config, eos_token_ids=tuple(sorted({*config.eos_token_ids, end})))
        template: ChatTemplate | ConfigError | None
        try:
            template = read_template(folder, tokenizer_config, special_tokens)
        except ConfigError as error:
            log.warning("%s serves no chats: %s", folder, error)
            template = error
        return cls(config, tokenizer, token_bytes, template, max_chars_per_token(spec))

    @property
    def has_tokenizer(self) -> bool:
        return self._tokenizer is not None

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        return self.config.eos_token_ids

    def limits(self, max_model_len: int) -> ModelLimits:
        """What requests are checked against; `max_model_len` is what the workers serve."""
        return ModelLimits(
            vocab_size=self.config.vocab_size,
            max_model_len=max_model_len,
            has_text=self.has_tokenizer,
            defaults=self.config.defaults,
            max_chars_per_token=self._max_chars_per_token,
        )

    def encode(
        self,
        text: str,
        add_special_tokens: bool = True,
        *,
        field: str = "text",
        limits: ModelLimits | None = None,
    ) -> list[int]:
        """`field` names the input in errors. `limits`: what is too long for them is refused as soon as
        that is known."""
        if self._tokenizer is None:
            raise InvalidArgument("this model has no tokenizer; send token ids", field=field)
        if limits is not None:
            check_text_length(len(text), limits, field=field)
        try:
            # the batch of one skips offsets, which makes it about twice as fast on long texts
            encodings = self._tokenizer.encode_batch_fast(
                [text], add_special_tokens=add_special_tokens
            )
        except TypeError as error:  # a lone surrogate cannot be UTF-8
            raise InvalidArgument("is not valid Unicode text", field=field) from error
        if limits is not None:
            check_prompt_length(len(encodings[0]), limits, field=field)
        return list(encodings[0].ids)

    def render(self, messages: Sequence[Message]) -> str:
        if self._template is None:
            raise InvalidArgument(
                "this model has no chat template; send text or token ids", field="chat.messages"
            )
        if isinstance(self._template, ConfigError):
            raise InvalidArgument(
                f"this model's chat template cannot be used: {self._template}",
                field="chat.messages",
            )
        return self._template.render(messages)

    def encode_chat(
        self, messages: Sequence[Message], *, limits: ModelLimits | None = None
    ) -> list[int]:
        """The rendered conversation as tokens. The template itself writes the bos token, so none is
        added."""
        return self.encode(
            self.render(messages), add_special_tokens=False, field="chat.messages", limits=limits
        )

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """Ids outside of the tokenizer's vocabulary are empty."""
        if self._tokenizer is None:
            raise InvalidArgument("this model has no tokenizer", field="token_ids")
        return str(self._tokenizer.decode(token_ids, skip_special_tokens=skip_special_tokens))

    def detokenizer(
        self, prompt_token_ids: Sequence[int], output_token_ids: Sequence[int] = ()
    ) -> Detokenizer:
        """Without a tokenizer its text stays empty."""
        return Detokenizer(self._token_bytes, prompt_token_ids, output_token_ids)

    def token_bytes(self, token_id: int) -> bytes:
        """What log-probabilities show of a token; nothing without a tokenizer."""
        return b"" if self._token_bytes is None else self._token_bytes.named(token_id)


def _refuse_other_tokenizers(folder: Path) -> None:
    for name in _OTHER_TOKENIZERS:
        if (folder / name).exists():
            raise ConfigError(
                f"{folder} has {name} but no tokenizer.json; save it with a fast tokenizer",
                field="tokenizer.json",
            )


def _read_tokenizer(path: Path) -> Tokenizer:
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises plain Exception, whatever is wrong
        raise ConfigError(f"{path} is not a tokenizer: {error}", field=path.name) from error
    tokenizer.no_truncation()  # some files carry their training's truncation and padding
    tokenizer.no_padding()
    return tokenizer
