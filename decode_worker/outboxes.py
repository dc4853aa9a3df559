"""What the decode role says to routers, collected: one message carries a whole step of all their requests."""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping, Sequence

from baton import instants
from baton.errors import BatonError
from baton.scheduling.sample import Sample
from baton.types import FinishReason, HandOffReport, PositionLogprobs, Usage
from baton.worker.turns import Turns
from decode_worker.messages import Finished, Key, Outbox, PrefillLost, RouterId, SampleEnded


class Outboxes:
    """`tells_first`: what is collected must leave before the step that follows."""

    def __init__(self) -> None:
        self.tells_first = False
        self._outboxes: dict[RouterId, Outbox] = {}
        self._turns: Turns[Key] = Turns()

    def take(self) -> Mapping[RouterId, Outbox]:
        """All that was collected since the last call."""
        outboxes, self._outboxes, self.tells_first = self._outboxes, {}, False
        return outboxes

    def forget(self, router: RouterId) -> None:
        self._outboxes.pop(router, None)

    def begin(self, key: Key) -> None:
        """A request has come: its router is told whether the coming step computes it."""
        self._turns.begin(key)

    def turns(
        self,
        planned: Sequence[Sample],
        key_of: Callable[[Sample], Key],
        requests: Container[Key],
    ) -> None:
        """What the coming step computes, where that is not what the last one did."""
        computing, waiting = self._turns.changes(planned, key_of, requests)
        for router, number in computing:
            self._of(router).computing.append(number)
        for router, number in waiting:
            self._of(router).waiting.append(number)
        if computing or waiting:
            self.tells_first = any(sample.suspected for sample in planned)

    def token(
        self, key: Key, sample: Sample, token_id: int, logprobs: PositionLogprobs | None
    ) -> None:
        """One row of the router's message for a token that was drawn."""
        router, number = key
        outbox = self._of(router)
        if logprobs is not None:
            outbox.logprobs.append((len(outbox.keys), logprobs))
        outbox.keys.append(number)
        outbox.sample_indices.append(sample.sample_index)
        outbox.token_ids.append(token_id)

    def prompt_logprobs(self, key: Key, logprobs: Sequence[PositionLogprobs]) -> None:
        self._of(key[0]).prompt_logprobs.append((key[1], logprobs))

    def sample_ended(self, key: Key, sample: Sample, reason: FinishReason) -> None:
        stop_token_id = sample.token_ids[-1] if reason is FinishReason.STOP else 0
        ended = SampleEnded(key[1], sample.sample_index, reason, stop_token_id)
        self._of(key[0]).ended_samples.append(ended)

    def prefill_lost(self, key: Key, error: BatonError, *, computing: bool) -> None:
        self._of(key[0]).prefill_lost.append(PrefillLost(key[1], error, computing))

    def refused(self, key: Key, error: BatonError, num_prompt_tokens: int, now_s: float) -> None:
        """The last word on a request that has not begun."""
        usage, at_s = Usage(num_prompt_tokens, 0, 0), {instants.FINISHED: now_s}
        self._of(key[0]).finished.append(Finished(key[1], error, usage, at_s, 0))

    def finished(
        self,
        key: Key,
        error: BatonError | None,
        samples: Sequence[Sample],
        instants_s: Mapping[str, float],
        hand_off: HandOffReport | None,
    ) -> None:
        lead = samples[0]
        usage = Usage(
            lead.num_prompt_tokens,
            min(lead.num_cached_tokens, lead.num_prompt_tokens),
            sum(sample.num_output_tokens for sample in samples),
        )
        num_preemptions = sum(sample.num_preemptions for sample in samples)
        self._of(key[0]).finished.append(
            Finished(key[1], error, usage, instants_s, num_preemptions, hand_off)
        )

    def _of(self, router: RouterId) -> Outbox:
        return self._outboxes.setdefault(router, Outbox())
