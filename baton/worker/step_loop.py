"""The engine's thread: takes events, runs steps, hands out what they produced.

    while running:
        events  -> role.handle          everything that arrived since the last step
        plan    =  role.schedule(now)
        deliver(role.take_commands())   what the events and the plan ask for
        output  =  runner.run(plan)
        role.update(plan, output, now)
        deliver(role.take_commands())   what the step produced

All state of the role belongs to this thread; others only `post` events or `ask` questions. It knows no
network and does not know which role it runs.

An event whose handling raises costs the request that it is about. The loop ends where a step raises: what
one sample brought was checked before, or is answered in the step's output, so that then it is the engine.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Generic, Protocol, TypeVar

from baton.errors import BatonError, Internal, Unavailable
from baton.scheduling.step_plan import StepOutput, StepPlan

log = logging.getLogger(__name__)

Event = TypeVar("Event")
Commands = TypeVar("Commands")
Answer = TypeVar("Answer")
EventIn = TypeVar("EventIn", contravariant=True)
CommandsOut = TypeVar("CommandsOut", covariant=True)

_LONGEST_WAIT_S = 1.0


class Role(Protocol[EventIn, CommandsOut]):
    """A worker role as the step loop sees it: pure decisions, time as an argument."""

    @property
    def next_deadline_s(self) -> float | None: ...
    def handle(self, event: EventIn, now_s: float) -> None: ...
    def fail(self, event: EventIn, error: BatonError, now_s: float) -> None:
        """`handle` has raised: ends the request that `event` is about. Raises where that is none, or
        where blocks have gone astray."""
        ...

    def schedule(self, now_s: float) -> StepPlan | None: ...
    def update(self, plan: StepPlan, output: StepOutput, now_s: float) -> None: ...
    def fail_all(self, error: BatonError, now_s: float) -> None: ...
    def take_commands(self) -> CommandsOut: ...


class Runner(Protocol):
    def run(self, plan: StepPlan) -> StepOutput: ...


class StepLoop(Generic[Event, Commands]):
    """Runs `role` on `runner` in a thread of its own, from `start` until `stop`.

    `deliver` and `on_failure` are called on that thread. When a step raises, every request is answered
    with Unavailable, so that it goes on at another worker, the loop ends and `on_failure` is told: an
    engine that failed once is not trusted again.
    """

    def __init__(
        self,
        role: Role[Event, Commands],
        runner: Runner,
        deliver: Callable[[Commands], None],
        on_failure: Callable[[BaseException], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._role = role
        self._runner = runner
        self._deliver = deliver
        self._on_failure = on_failure
        self._clock = clock
        self._inbox: queue.SimpleQueue[tuple[Event] | Callable[[], None] | None] = (
            queue.SimpleQueue()
        )
        self._thread = threading.Thread(target=self._main, name="engine", daemon=True)
        self._closed = False
        self._has_work = False
        self.busy_since_s: float | None = None  # with a step, or with events; None while it waits
        self.longest_step_s = 0.0

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Ends the loop after the step in progress and waits for it."""
        self._inbox.put(None)
        if self._thread.is_alive():
            self._thread.join()

    def post(self, event: Event) -> None:
        """Hands `event` to the role before its next step. Any thread."""
        self._inbox.put((event,))

    def ask(self, question: Callable[[], Answer]) -> Future[Answer]:
        """Runs `question` between two steps, where it may read the role's state. Any thread. One that is
        cancelled before its turn is not run."""
        future: Future[Answer] = Future()

        def answer() -> None:
            if not future.set_running_or_notify_cancel():
                return
            if self._closed:
                future.set_exception(Unavailable("the engine has stopped"))
                return
            try:
                future.set_result(question())
            except Exception as error:  # the asker gets it, whatever it is
                future.set_exception(error)

        self._inbox.put(answer)
        if self._closed:
            self._drain_questions()
        return future

    # The engine's thread

    def _main(self) -> None:
        try:
            while self._take_events():
                self._step()
        except BaseException as error:
            log.exception("the engine failed")
            self._role.fail_all(Unavailable(f"the engine failed: {error}"), self._clock())
            self._deliver(self._role.take_commands())
            self._on_failure(error)
        finally:
            self._closed = True
            self.busy_since_s = None
            self._drain_questions()

    def _step(self) -> None:
        started_s = self.busy_since_s = self._clock()
        plan = self._role.schedule(started_s)
        self._deliver(self._role.take_commands())
        self._has_work = plan is not None
        if plan is None:
            return
        output = self._runner.run(plan)
        ended_s = self._clock()
        self._role.update(plan, output, ended_s)
        self._deliver(self._role.take_commands())
        self.longest_step_s = max(self.longest_step_s, ended_s - started_s)

    def _take_events(self) -> bool:
        """Handles what has arrived; waits for something only where there is no work. False: stop."""
        wait_s = 0.0 if self._has_work else self._idle_wait_s()
        if wait_s:
            self.busy_since_s = None
        try:
            item = self._inbox.get(timeout=wait_s) if wait_s else self._inbox.get_nowait()
            self.busy_since_s = self._clock()
            while True:
                if item is None:
                    return False
                if isinstance(item, tuple):
                    self._handle(item[0])
                else:
                    item()
                item = self._inbox.get_nowait()
        except queue.Empty:
            return True

    def _handle(self, event: Event) -> None:
        try:
            self._role.handle(event, self._clock())
        except Exception as error:
            log.exception("an event could not be handled, its request ends")
            self._role.fail(event, Internal(f"the worker failed: {error!r}"), self._clock())

    def _idle_wait_s(self) -> float:
        deadline_s = self._role.next_deadline_s
        if deadline_s is None:
            return _LONGEST_WAIT_S
        return min(max(deadline_s - self._clock(), 0.001), _LONGEST_WAIT_S)

    def _drain_questions(self) -> None:
        while True:
            try:
                item = self._inbox.get_nowait()
            except queue.Empty:
                return
            if callable(item):
                item()
