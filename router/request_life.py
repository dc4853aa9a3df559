"""One request at the router: what was asked, what has been produced, when things happened.

State only; `router.dispatch` moves it. Everything another attempt needs is here: the tokens produced so
far are forced on the next worker, and whoever it is goes on after them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from baton import convert, instants
from baton.block_id import salt
from baton.types import SamplingParams, Timeline, Usage
from baton.v1 import decode_pb2
from router.decode_stream import LegEnd, LegUpdate, Row, SampleEnd
from router.frontend import Deltas, Finished, SampleDelta
from router.models import ServedModel
from router.pools import Pool
from router.request import GenerateInput
from router.sample_text import SampleText


@dataclass(slots=True, eq=False)
class RequestLife:
    """`instants` are on this router's monotonic clock; `deadline_s` too."""

    request_id: str
    request: GenerateInput
    model: ServedModel
    params: SamplingParams
    prompt_token_ids: Sequence[int]
    samples: list[SampleText]
    instants: dict[str, float]
    deadline_s: float | None = None
    decode_worker: str = ""
    num_attempts: int = 0
    num_preemptions: int = 0
    num_cached_tokens: int = 0
    num_prompt_logprobs: int = 0  # sent to the client
    num_prompt_logprobs_seen: int = 0  # computed in this attempt
    state: str = "waiting"

    @classmethod
    def begin(
        cls,
        request_id: str,
        request: GenerateInput,
        model: ServedModel,
        params: SamplingParams,
        prompt_token_ids: Sequence[int],
        instants_s: Mapping[str, float],
    ) -> RequestLife:
        text = model.text if request.detokenize and model.limits.has_text else None
        forced = request.output_token_ids or [()] * params.n
        samples = [
            SampleText(index, params, text, prompt_token_ids, forced[index])
            for index in range(params.n)
        ]
        deadline_s = None
        if request.timeout_s is not None:
            deadline_s = instants_s[instants.RECEIVED] + request.timeout_s
        return cls(
            request_id,
            request,
            model,
            params,
            prompt_token_ids,
            samples,
            dict(instants_s),
            deadline_s,
        )

    @property
    def done(self) -> bool:
        return all(sample.finished for sample in self.samples)

    @property
    def num_tokens(self) -> int:
        return len(self.prompt_token_ids) + sum(len(sample.token_ids) for sample in self.samples)

    def start_message(self, pool: Pool, now_s: float) -> decode_pb2.Start:
        """What the worker of `pool` is told for the next attempt."""
        return decode_pb2.Start(
            request_id=self.request_id,
            attempt=self.num_attempts,
            pool=convert.pool_to_proto(pool.id),
            incarnation=pool.worker.incarnation,
            prompt_token_ids=self.prompt_token_ids,
            output_token_ids=convert.token_ids_to_proto(s.token_ids for s in self.samples)
            if any(sample.token_ids for sample in self.samples)
            else (),
            sampling=convert.sampling_to_proto(self.params),
            salt=salt(self.model.identity, tenant=self.request.tenant),
            tenant=self.request.tenant,
            priority=self.request.priority,
            timeout_s=max(1e-3, self.deadline_s - now_s) if self.deadline_s is not None else 0.0,
            eos_token_ids=self.model.text.eos_token_ids if self.model.text else (),
        )

    def ended_when_received(self) -> Deltas | None:
        """What a continuation whose forced tokens end samples has to say at once."""
        deltas = tuple(delta for sample in self.samples if (delta := sample.end_of_forced()))
        return Deltas(deltas) if deltas else None

    def take(self, update: LegUpdate) -> Deltas | None:
        """Turns what a worker produced into what the client gets; None where that is nothing."""
        rows: dict[int, list[Row]] = {}
        for row in update.rows:
            rows.setdefault(row.sample_index, []).append(row)
        ends = {end.sample_index: end for end in update.ended}
        deltas = [
            delta
            for index in sorted(rows.keys() | ends.keys())
            if (delta := self._push(index, rows.get(index, []), ends.get(index)))
        ]
        return Deltas(tuple(deltas)) if deltas else None

    def _push(self, index: int, rows: list[Row], end: SampleEnd | None) -> SampleDelta | None:
        sample = self.samples[index]
        if sample.finished:
            return None  # ended here by a stop string, before the worker knew
        return sample.push(rows, end)

    def note_end(self, end: LegEnd) -> None:
        """Keeps what the worker's last word says; instants of an earlier attempt stand."""
        for name, at_s in end.instants.items():
            if name != instants.FINISHED:
                self.instants.setdefault(name, max(at_s, self.instants[instants.ROUTED]))
        self.num_preemptions += end.num_preemptions
        if self.num_attempts == 1:
            self.num_cached_tokens = end.usage.num_cached_tokens

    def finished(self) -> Finished:
        return Finished(self.usage(), self.timeline())

    def usage(self) -> Usage:
        num_output_tokens = sum(len(sample.token_ids) for sample in self.samples)
        return Usage(len(self.prompt_token_ids), self.num_cached_tokens, num_output_tokens)

    def timeline(self) -> Timeline:
        return Timeline(
            events=instants.relative(self.instants),
            decode_worker=self.decode_worker,
            prefill_worker="",
            num_cached_tokens=self.num_cached_tokens,
            num_computed_tokens=len(self.prompt_token_ids) - self.num_cached_tokens,
            num_attempts=self.num_attempts,
            num_preemptions=self.num_preemptions,
        )
