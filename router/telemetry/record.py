"""Writes down all that a router's decisions follow from, and the decisions (baton.decision_records).

The recorded classes do what those they derive from do, and say so.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from itertools import count
from math import inf
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from baton import decision_records as records
from baton.errors import ConfigError
from baton.state.base import InFlight
from baton.types import BlockId, PoolId, PoolLoad, WorkerInfo
from router.routing.chooser import Chooser, PromptBlocks, Takes
from router.routing.commitment import Commitment
from router.routing.index import MAX_BYTES, BlockIndex
from router.routing.policy import Choice, PolicySettings
from router.routing.pools import Instance, Pools


class Recorder:
    """Appends to a file, which is complete when it is closed."""

    def __init__(self, path: Path) -> None:
        try:
            self._file = path.open("w", encoding="utf-8")
        except OSError as error:
            raise ConfigError(f"cannot be written: {error}", field=str(path)) from error
        self._file.write(records.HEADER + "\n")

    def write(self, name: str, *arguments: Any, at_s: float | None = None) -> None:
        now_s = time.monotonic() if at_s is None else at_s
        self._file.write(records.line(now_s, name, *arguments) + "\n")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._file.close()


class RecordedPools(Pools):
    def __init__(self, recorder: Recorder) -> None:
        super().__init__()
        self._recorder = recorder

    def put(self, worker: WorkerInfo, *, draining: bool = False) -> None:
        self._recorder.write("put", records.worker(worker), draining)
        super().put(worker, draining=draining)

    def report(self, load: PoolLoad) -> None:
        self._recorder.write("report", records.load(load))
        super().report(load)

    def remove(self, worker_id: str) -> None:
        self._recorder.write("remove", worker_id)
        super().remove(worker_id)

    def keep_apart(self, decode: PoolId, prefill: Instance, until_s: float) -> None:
        pool_id, incarnation = prefill
        finite_s = until_s if until_s < inf else None
        self._recorder.write(
            "apart", records.pool(decode), records.pool(pool_id), incarnation, finite_s
        )
        super().keep_apart(decode, prefill, until_s)

    def note_elsewhere(self, reports: Iterable[Mapping[PoolId, InFlight]]) -> None:
        said = list(reports)
        for pool_id, work in ((pool_id, work) for each in said for pool_id, work in each.items()):
            self._recorder.write(
                "elsewhere", records.pool(pool_id), work.num_requests, work.num_queued_tokens
            )
        self._recorder.write("elsewhere_end")
        super().note_elsewhere(said)

    def note_replicas(self, number: int, num_replicas: int) -> None:
        self._recorder.write("replicas", number, num_replicas)
        super().note_replicas(number, num_replicas)


class RecordedIndex(BlockIndex):
    def __init__(self, recorder: Recorder, max_bytes: int) -> None:
        super().__init__(max_bytes)
        self._recorder = recorder

    def store(self, pool: PoolId, block_ids: Iterable[BlockId]) -> None:
        stored = list(block_ids)
        self._recorder.write("store", records.pool(pool), records.ids(stored))
        super().store(pool, stored)

    def remove(self, pool: PoolId, block_ids: Iterable[BlockId]) -> None:
        removed = list(block_ids)
        self._recorder.write("forget", records.pool(pool), records.ids(removed))
        super().remove(pool, removed)

    def drop(self, pool: PoolId) -> None:
        self._recorder.write("drop", records.pool(pool))
        super().drop(pool)


class RecordedChooser(Chooser):
    def __init__(
        self, recorder: Recorder, settings: PolicySettings, index_bytes: int = MAX_BYTES
    ) -> None:
        index = RecordedIndex(recorder, index_bytes)
        super().__init__(RecordedPools(recorder), index, settings)
        self._recorder = recorder
        self._numbers = count()

    def choose(self, prompt: PromptBlocks, takes: Takes, now_s: float) -> Choice | None:
        choice = super().choose(prompt, takes, now_s)
        self._recorder.write(
            "route",
            *prompt.weights,
            prompt.num_tokens,
            records.ids(prompt.block_ids),
            prompt.block_size,
            prompt.kv_bytes_per_token,
            self._rates(),
            self._not_taking(takes),
            records.pool(choice.decode.id) if choice else None,
            records.pool(choice.prefill.id) if choice and choice.prefill else None,
            at_s=now_s,
        )
        return choice

    def reroute(
        self, commitment: Commitment, prompt: PromptBlocks, takes: Takes, now_s: float
    ) -> Choice:
        assert isinstance(commitment, _RecordedCommitment)
        rates, not_taking = self._rates(), self._not_taking(takes)
        choice = super().reroute(commitment, prompt, takes, now_s)
        prefill = records.pool(choice.prefill.id) if choice.prefill else None
        arguments = commitment.number, prompt.num_tokens, rates, not_taking, prefill
        self._recorder.write("reroute", *arguments, at_s=now_s)
        return choice

    def _rates(self) -> dict[str, float]:
        return {
            records.pool(pool.id): pool.transfer_bytes_per_s
            for pool in self.pools
            if pool.transfer_bytes_per_s
        }

    def _not_taking(self, takes: Takes) -> list[str]:
        return [records.pool(pool.id) for pool in self.pools if not takes(pool)]

    def _commitment(self, choice: Choice, prompt: PromptBlocks, now_s: float) -> Commitment:
        number = next(self._numbers)
        self._recorder.write("commit", number, at_s=now_s)
        return _RecordedCommitment(self._recorder, number, choice, prompt, self.index, now_s)


class _RecordedCommitment(Commitment):
    def __init__(
        self,
        recorder: Recorder,
        number: int,
        choice: Choice,
        prompt: PromptBlocks,
        index: BlockIndex,
        now_s: float,
    ) -> None:
        self._recorder = recorder
        self.number = number
        super().__init__(choice, prompt.block_ids, prompt.block_size, index, now_s)

    def computed(self, now_s: float) -> None:
        self._recorder.write("computed", self.number, at_s=now_s)
        super().computed(now_s)

    def end(self, now_s: float, num_output_tokens: int = 0) -> None:
        super().end(now_s)
        self._recorder.write("end", self.number, num_output_tokens, at_s=now_s)
