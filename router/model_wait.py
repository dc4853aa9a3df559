"""A request's model, as soon as a worker of it is up: workers restart, and routers do."""

from __future__ import annotations

import time
from math import inf

from baton.errors import DeadlineExceeded, Unavailable
from router.models import Models, ServedModel
from router.request import GenerateInput
from router.workers.fleet import Fleet


class ModelWait:
    """Waits `wait_s` at most for each request, and for `max_waiting` requests at a time."""

    def __init__(self, models: Models, fleet: Fleet, wait_s: float, max_waiting: int) -> None:
        self._models = models
        self._fleet = fleet
        self._wait_s = wait_s
        self._max_waiting = max_waiting
        self._num_waiting = 0

    async def get(self, request: GenerateInput, received_s: float) -> ServedModel:
        """The model asked for. Raises as `Models.get` does, and DeadlineExceeded."""
        try:
            return self._models.get(request.model)
        except Unavailable:
            if self._num_waiting >= self._max_waiting:
                raise
        self._num_waiting += 1
        try:
            return await self._wait(request, received_s)
        finally:
            self._num_waiting -= 1

    async def _wait(self, request: GenerateInput, received_s: float) -> ServedModel:
        timeout_s = inf if request.timeout_s is None else request.timeout_s
        give_up_s = received_s + min(self._wait_s, timeout_s)
        while True:
            is_over = not await self._fleet.wait_for_change(give_up_s - time.monotonic())
            try:
                return self._models.get(request.model)
            except Unavailable:
                if is_over and timeout_s < self._wait_s:
                    raise DeadlineExceeded("the deadline passed before a worker was up") from None
                if is_over:
                    raise
