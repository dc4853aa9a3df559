"""One sample's tokens on their way to the client: text, stop strings, what has been sent.

A pure function of the tokens, so that any router can go on from any of them: a continuation pushes the
forced tokens through the same steps and drops what they emit, because the client has it already.
"""

from __future__ import annotations

from collections.abc import Sequence

from baton.types import FinishReason, SamplingParams
from router.frontend import SampleDelta
from router.text.model_text import ModelText
from router.text.stop_strings import StopMatcher
from router.workers.decode_stream import Row, SampleEnd


class SampleText:
    """`finished` once its last delta was made; nothing may be pushed after that. Without `text` (a model
    that has no tokenizer, or a client that wants token ids alone) every delta's text is empty."""

    def __init__(
        self,
        sample_index: int,
        params: SamplingParams,
        text: ModelText | None,
        prompt_token_ids: Sequence[int],
        forced_token_ids: Sequence[int] = (),
    ) -> None:
        self.sample_index = sample_index
        self.token_ids = list(forced_token_ids)
        self.finish_reason: FinishReason | None = None
        self.stop: str | None = None
        self._stops = StopMatcher(params.stop)
        self._min_tokens = params.min_tokens
        self._num_released = 0
        self._detokenizer = text.detokenizer(prompt_token_ids) if text is not None else None
        for token_id in forced_token_ids:
            self._release(token_id)
        if self.stop is not None:
            self.finish_reason = FinishReason.STOP

    def end_of_forced(self) -> SampleDelta | None:
        """The delta that ends a sample whose forced tokens hold a stop string already."""
        return self._delta((), [], None) if self.finished else None

    @property
    def finished(self) -> bool:
        return self.finish_reason is not None

    def push(self, rows: Sequence[Row], end: SampleEnd | None) -> SampleDelta:
        """What the client gets for new tokens and, where the worker ended the sample, for its end.

        A stop string ends the sample with the token that completed it; later ones are not the client's.
        """
        if end is None and not self._stops.is_armed:
            return self._pass_on(rows)
        pieces: list[str] = []
        stop_token_row = len(rows) - 1 if end and end.reason is FinishReason.STOP else None
        for index, row in enumerate(rows):
            self.token_ids.append(row.token_id)
            if index != stop_token_row:  # a stop token has no text
                pieces.append(self._release(row.token_id))
            if self.stop is not None:
                self.finish_reason = FinishReason.STOP
                return self._delta(rows[: index + 1], pieces, None)
        if end is not None:
            self.finish_reason = end.reason
            pieces.append(self._flush())
            if self.stop is not None:
                self.finish_reason = FinishReason.STOP
        return self._delta(rows, pieces, end)

    def _pass_on(self, rows: Sequence[Row]) -> SampleDelta:
        """What nothing can end: all tokens at once."""
        token_ids = [row.token_id for row in rows]
        self.token_ids += token_ids
        text = self._detokenizer.push(token_ids) if self._detokenizer is not None else ""
        logprobs = tuple(row.logprobs for row in rows if row.logprobs is not None)
        return SampleDelta(self.sample_index, text, tuple(token_ids), logprobs)

    def _delta(self, rows: Sequence[Row], pieces: list[str], end: SampleEnd | None) -> SampleDelta:
        by_token = end is not None and end.reason is FinishReason.STOP and self.stop is None
        return SampleDelta(
            self.sample_index,
            "".join(pieces),
            tuple(row.token_id for row in rows),
            tuple(row.logprobs for row in rows if row.logprobs is not None),
            self.finish_reason,
            self.stop,
            end.stop_token_id if end is not None and by_token else None,
        )

    def _release(self, token_id: int) -> str:
        if self._detokenizer is None:
            return ""
        self._num_released += 1
        text = self._detokenizer.push((token_id,))
        may_stop = self._num_released >= self._min_tokens
        emitted, self.stop = self._stops.push(text, may_stop=may_stop)
        return emitted

    def _flush(self) -> str:
        """What was held back and can no longer become a character or a stop string."""
        if self._detokenizer is None:
            return ""
        may_stop = len(self.token_ids) >= self._min_tokens
        emitted, self.stop = self._stops.push(self._detokenizer.flush(), may_stop=may_stop)
        return emitted if self.stop is not None else emitted + self._stops.flush()
