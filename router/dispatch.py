"""The life of a request, as the router leads it.

    generate ── check, tokenize ── gate ── route ── leg on a decode worker ──> updates to the client
                 InvalidArgument   Overloaded  ^          |
                                               └── worker lost: the tokens so far are forced on
                                                   another one, and the stream goes on

It knows no wire format of clients, and of workers only what a `Leg` shows.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Sequence
from contextlib import aclosing, asynccontextmanager, contextmanager
from dataclasses import replace
from math import inf

from baton import convert, instants
from baton.errors import (
    BatonError,
    Cancelled,
    DeadlineExceeded,
    Draining,
    IncompatiblePeer,
    IntegrityError,
    PeerLost,
    Suspected,
    Unavailable,
)
from baton.types import PositionLogprobs, Role
from router.admission.admission import Ask
from router.config import RouterConfig
from router.frontend import Finished, GenerateUpdate, ModelCard, PromptLogprobs
from router.gate import Gate, Place
from router.intake import Intake
from router.model_wait import ModelWait
from router.models import ServedModel
from router.request import GenerateInput
from router.request_life import RequestLife
from router.routing.chooser import Chooser, Explanation, Takes
from router.routing.commitment import Commitment
from router.routing.policy import Choice
from router.routing.pools import Pool
from router.telemetry.request_log import RequestLog
from router.weights_choice import WeightsChoice
from router.workers.decode_stream import Leg, LegUpdate
from router.workers.fleet import Fleet

log = logging.getLogger(__name__)

_POSITIONS_AT_ONCE = 64  # of prompt log-probabilities: converted within a millisecond

_LAST_WORD_S = 1.0  # to wait for a worker's account of a request that a stop string ended


class Dispatcher:
    """The `Frontend` of both faces."""

    def __init__(
        self,
        config: RouterConfig,
        intake: Intake,
        fleet: Fleet,
        chooser: Chooser,
        gate: Gate,
        requests: RequestLog,
    ) -> None:
        self.config = config
        self._chooser = chooser
        self._intake = intake
        self._fleet = fleet
        self._gate = gate
        self._requests = requests
        self._weights = WeightsChoice(
            intake.models, chooser, mixes=config.continue_on_other_weights
        )
        self._model_wait = ModelWait(
            intake.models, fleet, config.no_worker_wait_s, config.admission.max_waiting
        )

    def models(self) -> Sequence[ModelCard]:
        return self._intake.models.cards()

    def is_serving(self) -> bool:
        return self._fleet.is_serving()

    def token_bytes(self, model: str, token_id: int) -> bytes:
        text = self._intake.models.texts.get(model)
        return text.token_bytes(token_id) if text else b""

    async def generate(self, request: GenerateInput) -> AsyncGenerator[GenerateUpdate, None]:
        received_s = time.monotonic()
        self._gate.check_quota(request.tenant)
        model = await self._model_wait.get(request, received_s)
        life = await self._receive(request, model, received_s)
        with self._requests.recording(life):
            async with self._place(life) as place:
                life.instants[instants.ADMITTED] = time.monotonic()
                yield life.admitted()
                if deltas := life.ended_when_received():
                    yield deltas
                while not life.done:
                    identity = life.fingerprint.identity
                    choice = await self._route(life)
                    if life.fingerprint.identity != identity:
                        yield life.admitted()
                    async with aclosing(self._attempt(life, choice, place)) as updates:
                        async for update in updates:
                            yield update
                yield self._finish(life)

    async def explain(self, request: GenerateInput) -> tuple[int, Explanation]:
        """The number of the prompt's tokens, and which pair it would get now. Starts nothing."""
        model = self._intake.models.get(request.model)
        life = await self._receive(request, model, time.monotonic())
        explanation = self._chooser.explain(
            life.prompt_blocks(), self._fleet.takes, time.monotonic()
        )
        if explanation is None:
            raise self._nobody(life)
        return life.num_tokens, explanation

    # 1. Receive: validate, tokenize once; a tenant that is to wait anyhow is told before that

    async def _receive(
        self, request: GenerateInput, model: ServedModel, received_s: float
    ) -> RequestLife:
        request = replace(request, priority=self._gate.class_of(request.priority))
        life = await self._intake.receive(request, model, received_s)
        self._weights.begin(life, self._takes(life), time.monotonic())
        return life

    # 2. Admit: wait for a place, and account for the tenant's tokens

    @asynccontextmanager
    async def _place(self, life: RequestLife) -> AsyncIterator[Place]:
        model, tenant = life.model.name, life.request.tenant
        num_missing = life.num_tokens - self._chooser.hits(life.prompt_blocks()).most
        ask = Ask(
            life.request.priority,
            tenant,
            inf if life.deadline_s is None else life.deadline_s,
            self._gate.work_s(model, num_missing),
            len(life.samples),
        )
        async with self._gate.place(model, ask) as place:
            num_given = life.num_tokens  # of a continuation what it forces, too: all is computed
            self._gate.spend(tenant, num_given)
            try:
                yield place
            finally:
                self._gate.spend(tenant, life.num_tokens - num_given)

    # 3. Route: choose the workers

    async def _route(self, life: RequestLife) -> Choice:
        """The pair of the next attempt. Waits for a worker where none is up, but not for ever."""
        if life.num_attempts >= self.config.max_attempts:
            raise Unavailable(f"{life.num_attempts} workers were lost while serving this request")
        give_up_s = time.monotonic() + self.config.no_worker_wait_s
        if life.deadline_s is not None:
            give_up_s = min(give_up_s, life.deadline_s)
        while True:
            if choice := self._weights.choose(life, self._takes(life), time.monotonic()):
                life.instants.setdefault(instants.ROUTED, time.monotonic())
                return choice
            if not await self._fleet.wait_for_change(give_up_s - time.monotonic()):
                raise self._nobody(life)

    def _takes(self, life: RequestLife) -> Takes:
        """What may be asked for this request: of prefill workers a bounded number, and none twice."""
        may_ask = len(life.lost_prefills) < self.config.max_prefill_attempts

        def takes(pool: Pool) -> bool:
            if pool.worker.role is Role.PREFILL and not may_ask:
                return False
            return pool.instance not in life.passed_over and self._fleet.takes(pool)

        return takes

    def _nobody(self, life: RequestLife) -> BatonError:
        if life.deadline_s is not None and time.monotonic() >= life.deadline_s:
            return DeadlineExceeded("the deadline passed before a worker was up")
        if self._weights.are_gone(life):
            return self._weights.gone(life, life.fingerprint.identity)
        return Unavailable(f"no worker of model {life.model.name!r} is up", retry_after_s=1.0)

    # 4. Attempt: follow one leg until the request ends or the worker is lost

    async def _attempt(
        self, life: RequestLife, choice: Choice, place: Place
    ) -> AsyncGenerator[GenerateUpdate, None]:
        life.begin_attempt(choice)
        with self._committed(life, choice) as commitment:
            message = life.start_message(choice, time.monotonic())
            try:
                leg = self._fleet.start(choice.decode, message)
            except Unavailable:
                return  # lost between choice and start
            try:
                for sample in life.samples:
                    if sample.finished:
                        leg.cancel(sample.sample_index)
                async with aclosing(self._follow(life, leg, commitment, place)) as updates:
                    async for update in updates:
                        yield update
            except Unavailable as error:
                # A worker that is leaving says so before the cluster state does.
                choice.decode.draining |= isinstance(error, Draining)
                if not isinstance(error, Draining) and leg.may_have_ended_worker(
                    suspected=life.num_suspected > 0
                ):
                    self._suspect(life)
                log.info("request %s: %s; it continues elsewhere", life.request_id, error)
            finally:
                leg.close()

    @contextmanager
    def _committed(self, life: RequestLife, choice: Choice) -> Iterator[Commitment]:
        commitment = self._chooser.commit(choice, life.prompt_blocks(), time.monotonic())
        try:
            yield commitment
        finally:
            commitment.end(time.monotonic(), life.usage().num_output_tokens)

    async def _follow(
        self, life: RequestLife, leg: Leg, commitment: Commitment, place: Place
    ) -> AsyncGenerator[GenerateUpdate, None]:
        awaits_first = True
        while True:
            update = await leg.take()
            if awaits_first and update.rows:
                awaits_first = False
                commitment.computed(time.monotonic())
                place.computed()
            if update.rows:
                life.num_suspected = 0
            if update.prefill_lost is not None:
                if update.prefill_lost_computing:
                    self._suspect(life)
                self._reroute(life, leg, commitment, update.prefill_lost)
                awaits_first = True  # that word of another pool
            for positions in self._fresh_prompt_logprobs(life, update):
                yield PromptLogprobs(positions)
                await asyncio.sleep(0)  # there may be many, and others have their turn in between
            if deltas := life.take(update):
                yield deltas
            if update.end is not None:
                life.note_end(update.end)
                if update.end.error is not None and not life.done:
                    raise update.end.error
                return
            self._cancel_finished(life, leg, update)
            if life.done:
                await self._last_word(life, leg)
                return

    def _suspect(self, life: RequestLife) -> None:
        """A worker was lost while it computed this request, and may have been lost by it. Ends a request to
        which that happens again, before it ends every worker."""
        life.num_suspected += 1
        if life.num_suspected >= self.config.max_suspected_deaths:
            raise Suspected(f"{life.num_suspected} workers died while they computed this request")

    def _reroute(
        self, life: RequestLife, leg: Leg, commitment: Commitment, error: BatonError
    ) -> None:
        """The prefill worker was lost, or refused: another one, or the decode worker itself, goes on."""
        log.info("request %s: %s; its prompt is computed elsewhere", life.request_id, error)
        life.note_lost_prefill(error)
        now_s = time.monotonic()
        self._learn(commitment.choice, error, now_s)
        choice = self._chooser.reroute(commitment, life.prompt_blocks(), self._takes(life), now_s)
        life.choice = choice
        leg.reroute(choice.prefill_choice())

    def _learn(self, failed: Choice, error: BatonError, now_s: float) -> None:
        """What a lost hand-off says about its pair, and so about other requests."""
        if failed.prefill is None:
            return
        decode, prefill = failed.decode.id, failed.prefill.instance
        match error:
            case Draining():
                failed.prefill.draining = True
            case IncompatiblePeer():
                self._chooser.pools.keep_apart(decode, prefill, inf)
            case PeerLost() | IntegrityError():
                until_s = now_s + self.config.pair_retry_s
                self._chooser.pools.keep_apart(decode, prefill, until_s)

    def _fresh_prompt_logprobs(
        self, life: RequestLife, update: LegUpdate
    ) -> Iterator[tuple[PositionLogprobs, ...]]:
        """Those not yet sent, some at a time: another attempt computes them again from the start."""
        seen = life.num_prompt_logprobs_seen
        life.num_prompt_logprobs_seen += len(update.prompt_logprobs)
        fresh = update.prompt_logprobs[max(0, life.num_prompt_logprobs - seen) :]
        life.num_prompt_logprobs += len(fresh)
        life.weights_settled |= bool(fresh)
        for first in range(0, len(fresh), _POSITIONS_AT_ONCE):
            some = fresh[first : first + _POSITIONS_AT_ONCE]
            yield tuple(map(convert.logprobs_from_proto, some))

    def _cancel_finished(self, life: RequestLife, leg: Leg, update: LegUpdate) -> None:
        """Tells the worker of samples that ended here, by a stop string."""
        if life.done:
            leg.cancel()
            return
        if len(life.samples) == 1:
            return
        ended = {end.sample_index for end in update.ended}
        for index in {row.sample_index for row in update.rows} - ended:
            if life.samples[index].finished:
                leg.cancel(index)

    async def _last_word(self, life: RequestLife, leg: Leg) -> None:
        """The worker's account (instants, cache hits) of a request that ended here first."""
        try:
            async with asyncio.timeout(_LAST_WORD_S):
                while (update := await leg.take()).end is None:
                    pass
            life.note_end(update.end)
        except (TimeoutError, Unavailable, Cancelled):
            log.info("request %s ended without its worker's account", life.request_id)

    def _finish(self, life: RequestLife) -> Finished:
        life.instants[instants.FINISHED] = time.monotonic()
        return life.finished()
