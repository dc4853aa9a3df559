"""Token ids to text as they come, each character as soon as its last byte is there.

The state is a pure function of the tokens, so that any router can continue a request: build one
from the prompt and push the output tokens that are already there.
"""

from __future__ import annotations

import codecs
from collections.abc import Sequence

from router.text.token_bytes import TokenBytes

_utf8_decoder = codecs.getincrementaldecoder("utf-8")


class Detokenizer:
    """The text that output tokens add to the text of the prompt.

    All pushed pieces and the flushed rest together are decode(prompt + output) minus
    decode(prompt); invalid UTF-8 becomes U+FFFD per maximal subpart. `output_token_ids` are those
    whose text was already taken elsewhere. Push no token that ended the sample: it is not part of
    the text.
    """

    __slots__ = ("_awaits_first", "_decoder", "_num_strips", "_tokens")

    def __init__(
        self,
        tokens: TokenBytes | None,
        prompt_token_ids: Sequence[int],
        output_token_ids: Sequence[int] = (),
    ) -> None:
        self._tokens = tokens
        self._decoder = _utf8_decoder("replace")
        self._num_strips = 0
        self._awaits_first = False
        if tokens is not None:
            self._enter_prompt(tokens, prompt_token_ids)
            self.push(output_token_ids)

    def push(self, token_ids: Sequence[int]) -> str:
        tokens = self._tokens
        if tokens is None:
            return ""
        if self._num_strips or self._awaits_first:
            return self._decoder.decode(b"".join(map(self._at_start, token_ids)))
        if len(token_ids) == 1:
            return self._decoder.decode(tokens.visible(token_ids[0]))
        return self._decoder.decode(b"".join(map(tokens.visible, token_ids)))

    def flush(self) -> str:
        """What an incomplete character at the end becomes; the last call."""
        return self._decoder.decode(b"", final=True)

    def _enter_prompt(self, tokens: TokenBytes, prompt_token_ids: Sequence[int]) -> None:
        """Only the prompt's ends matter: whether its start used up the strips, and an incomplete
        character (at most 3 bytes) at its end."""
        self._num_strips = tokens.decoder.num_strips
        self._awaits_first = tokens.decoder.first_to_bytes is not None
        for token_id in prompt_token_ids:
            if not (self._num_strips or self._awaits_first):
                break
            self._at_start(token_id)
        tail = b""
        for token_id in reversed(prompt_token_ids):
            if len(tail) >= 3:
                break
            tail = tokens.visible(token_id) + tail
        self._decoder.decode(tail)

    def _at_start(self, token_id: int) -> bytes:
        """The token's bytes, less what the start of a text loses."""
        assert self._tokens is not None
        if self._awaits_first:
            first = self._tokens.first(token_id)
            self._awaits_first = first is None
            return first or b""
        data, strip = self._tokens.visible(token_id), self._tokens.decoder.strip
        while self._num_strips and data:
            if not data.startswith(strip):
                self._num_strips = 0
                break
            data = data[len(strip) :]
            self._num_strips -= 1
        return data
