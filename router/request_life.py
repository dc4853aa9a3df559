"""One request at the router: what was asked, what has been produced, when things happened.

State only; `router.dispatch` moves it. Everything another attempt needs is here: the tokens produced so
far are forced on the next worker, and whoever it is goes on after them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from baton import convert, instants
from baton.block_id import chain, salt
from baton.errors import BatonError
from baton.types import (
    BlockId,
    Fingerprint,
    HandOffReport,
    SamplingParams,
    Timeline,
    Usage,
    Weights,
)
from baton.v1 import decode_pb2
from router.frontend import Admitted, Deltas, Finished, SampleDelta
from router.models import ServedModel, kv_bytes_per_token
from router.request import GenerateInput
from router.routing.chooser import PromptBlocks
from router.routing.policy import Choice
from router.routing.pools import Instance
from router.text.sample_text import SampleText
from router.workers.decode_stream import LegEnd, LegUpdate, Row, SampleEnd


@dataclass(frozen=True, slots=True)
class RequestAccount:
    """What operators see of a request; holds none of its tokens."""

    request_id: str
    state: str
    usage: Usage
    timeline: Timeline


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
    fingerprint: Fingerprint  # of the weights that serve it: their identity salts the block ids
    weights_settled: bool  # a part of the answer exists: no other weights go on with it
    deadline_s: float | None = None
    choice: Choice | None = None  # of the attempt in progress
    hand_off: HandOffReport | None = None
    num_attempts: int = 0
    lost_prefills: list[str] = field(default_factory=list)  # codes of the errors they ended with
    passed_over: set[Instance] = field(default_factory=set)  # prefill pools not to ask again
    num_suspected: int = 0  # workers that died while they computed it, since its last token
    num_preemptions: int = 0
    num_cached_tokens: int = 0
    num_prompt_logprobs: int = 0  # sent to the client
    num_prompt_logprobs_seen: int = 0  # computed in this attempt
    state: str = "waiting"
    _block_ids: dict[Fingerprint, Sequence[BlockId]] = field(default_factory=dict)

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
            _wanted(request, model),
            bool(request.weights),
            deadline_s,
        )

    @property
    def done(self) -> bool:
        return all(sample.finished for sample in self.samples)

    @property
    def num_tokens(self) -> int:
        return len(self.prompt_token_ids) + sum(len(sample.token_ids) for sample in self.samples)

    @property
    def salt(self) -> bytes:
        return salt(self.fingerprint.identity, tenant=self.request.tenant)

    def block_ids(self) -> Sequence[BlockId]:
        """Of the prompt's full blocks."""
        known = self._block_ids.get(self.fingerprint)
        if known is None:
            known = list(chain(self.prompt_token_ids, self.fingerprint.block_size, self.salt))
            self._block_ids[self.fingerprint] = known
        return known

    def name_blocks(self) -> None:
        """Works the block ids out, which takes time, for every set of weights that may serve it."""
        begun_with = self.fingerprint
        for fingerprint in self.model.fingerprints:
            if fingerprint == begun_with or not self.weights_settled:
                self.fingerprint = fingerprint
                self.block_ids()
        self.fingerprint = begun_with

    def prompt_blocks(self) -> PromptBlocks:
        """As routing sees it; tokens that are forced are to be computed, too."""
        return PromptBlocks(
            Weights(self.model.name, self.fingerprint.identity),
            self.num_tokens,
            self.block_ids(),
            self.fingerprint.block_size,
            kv_bytes_per_token(self.fingerprint),
        )

    def begin_attempt(self, choice: Choice) -> None:
        self.choice = choice
        self.state = "running"
        self.num_attempts += 1
        self.num_prompt_logprobs_seen = 0

    def note_lost_prefill(self, error: BatonError) -> None:
        """The prefill pool of the choice could not compute the prompt, or not get it across."""
        self.lost_prefills.append(error.code)
        if self.choice is not None and self.choice.prefill is not None:
            self.passed_over.add(self.choice.prefill.instance)

    def start_message(self, choice: Choice, now_s: float) -> decode_pb2.Start:
        """What the decode worker is told for the next attempt."""
        pool, prefill = choice.decode, choice.prefill_choice()
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
            salt=self.salt,
            prefill=convert.prefill_choice_to_proto(prefill) if prefill else None,
            tenant=self.request.tenant,
            priority=self.request.priority,
            timeout_s=max(1e-3, self.deadline_s - now_s) if self.deadline_s is not None else 0.0,
            suspected=self.num_suspected > 0,
            eos_token_ids=self.model.text.eos_token_ids if self.model.text else (),
        )

    def ended_when_received(self) -> Deltas | None:
        """What a continuation whose forced tokens end samples has to say at once."""
        deltas = tuple(delta for sample in self.samples if (delta := sample.end_of_forced()))
        return Deltas(deltas) if deltas else None

    def take(self, update: LegUpdate) -> Deltas | None:
        """Turns what a worker produced into what the client gets; None where that is nothing."""
        self.weights_settled |= bool(update.rows)
        if len(self.samples) == 1:
            if not (update.rows or update.ended):
                return None
            delta = self._push(0, update.rows, update.ended[0] if update.ended else None)
            return Deltas((delta,)) if delta else None
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
        if end.hand_off is not None:
            self.hand_off = end.hand_off
            if self.choice is not None:
                self.choice.decode.note_transfer(
                    end.hand_off.transfer_bytes, end.hand_off.transfer_s
                )

    def account(self) -> RequestAccount:
        return RequestAccount(self.request_id, self.state, self.usage(), self.timeline())

    def admitted(self) -> Admitted:
        return Admitted(
            self.request_id,
            self.model.name,
            self.params.seed,
            len(self.prompt_token_ids),
            self.fingerprint.identity,
        )

    def finished(self) -> Finished:
        return Finished(self.usage(), self.timeline())

    def usage(self) -> Usage:
        num_output_tokens = sum(len(sample.token_ids) for sample in self.samples)
        return Usage(len(self.prompt_token_ids), self._num_cached(), num_output_tokens)

    def _num_cached(self) -> int:
        """Of the prompt's tokens, those that nobody computed: found on the decode worker, or on the prefill
        worker, which also counts tokens that were forced."""
        on_prefill = self.hand_off.num_prefill_cached_tokens if self.hand_off else 0
        return min(max(self.num_cached_tokens, on_prefill), len(self.prompt_token_ids))

    def timeline(self) -> Timeline:
        choice, hand_off = self.choice, self.hand_off
        return Timeline(
            events=instants.relative(self.instants),
            decode_worker=choice.decode.id.worker_id if choice else "",
            prefill_worker=hand_off.prefill_worker if hand_off else "",
            num_cached_tokens=self.num_cached_tokens,
            num_computed_tokens=len(self.prompt_token_ids) - self._num_cached(),
            num_attempts=self.num_attempts + len(self.lost_prefills),
            num_preemptions=self.num_preemptions,
            predicted_local_ttft_s=choice.local_ttft_s if choice else None,
            predicted_remote_ttft_s=choice.remote_ttft_s if choice else None,
            hand_off=hand_off,
        )


def _wanted(request: GenerateInput, model: ServedModel) -> Fingerprint:
    """Of the weights that the request asks for, of the first where it asks for none or they are not there."""
    wanted = (each for each in model.fingerprints if each.identity == request.weights)
    return next(wanted, model.fingerprints[0])
