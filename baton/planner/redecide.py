"""Decides again what a router decided, from its record: the same calls, in the same order, at the same times.
Pure.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from math import inf
from typing import Any

from baton import decision_records as records
from baton.errors import ConfigError
from baton.state.base import InFlight
from baton.types import PoolId, Weights
from router.routing.chooser import Chooser, PromptBlocks, Takes
from router.routing.commitment import Commitment
from router.routing.index import BlockIndex
from router.routing.policy import Choice, PolicySettings
from router.routing.pools import Pools

Pair = tuple[PoolId | None, PoolId | None]  # decode and prefill pool


@dataclass(frozen=True, slots=True)
class Decision:
    """One choice: as it was recorded, and as it is made now."""

    at_s: float
    prompt: PromptBlocks
    recorded: Pair
    decided: Pair


def redecide(lines: Iterable[str], settings: PolicySettings) -> Iterator[Decision]:
    """Raises ConfigError that names the line at fault."""
    router = _Router(settings)
    for number, line in enumerate(lines, 1):
        try:
            event = json.loads(line)
            if number == 1:
                if event != json.loads(records.HEADER):
                    raise ValueError("it is of another format")
                continue
            at_s, name, *arguments = event
            decision = router.handle(float(at_s), str(name), arguments)
        except (ValueError, KeyError, TypeError, IndexError) as error:
            raise ConfigError(
                f"is no record of decisions: {error!r}", field=f"line {number}"
            ) from error
        if decision is not None:
            yield decision


class _Router:
    def __init__(self, settings: PolicySettings) -> None:
        self._pools, self._index = Pools(), BlockIndex()
        self._chooser = Chooser(self._pools, self._index, settings)
        self._elsewhere: list[Mapping[PoolId, InFlight]] = []
        self._commitments: dict[int, tuple[Commitment, PromptBlocks]] = {}
        self._last: tuple[Choice, PromptBlocks] | None = None

    def handle(self, at_s: float, name: str, arguments: list[Any]) -> Decision | None:
        match name, arguments:
            case "put", [worker, draining]:
                self._pools.put(records.worker_from(worker), draining=draining)
            case "report", [load]:
                self._pools.report(records.load_from(load))
            case "remove", [worker_id]:
                self._pools.remove(worker_id)
            case "replicas", [number, num_replicas]:
                self._pools.note_replicas(number, num_replicas)
            case "elsewhere", [pool, num_requests, num_tokens]:
                self._elsewhere.append(
                    {records.pool_from(pool): InFlight(num_requests, num_tokens)}
                )
            case "elsewhere_end", []:
                self._pools.note_elsewhere(self._elsewhere)
                self._elsewhere = []
            case "store", [pool, ids]:
                self._index.store(records.pool_from(pool), records.ids_from(ids))
            case "forget", [pool, ids]:
                self._index.remove(records.pool_from(pool), records.ids_from(ids))
            case "drop", [pool]:
                self._index.drop(records.pool_from(pool))
            case "route", _:
                return self._route(at_s, *arguments)
            case "commit", [number]:
                assert self._last is not None
                choice, prompt = self._last
                commitment = self._chooser.commit(choice, prompt, at_s)
                self._commitments[number] = commitment, prompt
            case "apart", [decode, prefill, incarnation, until_s]:
                instance = records.pool_from(prefill), int(incarnation)
                until_s = inf if until_s is None else until_s
                self._pools.keep_apart(records.pool_from(decode), instance, until_s)
            case "reroute", [number, num_tokens, rates, idle, _]:
                commitment, prompt = self._commitments[number]
                prompt = replace(prompt, num_tokens=num_tokens)
                self._chooser.reroute(commitment, prompt, self._takes(rates, idle), at_s)
            case "computed", [number]:
                self._commitments[number][0].computed(at_s)
            case "end", [number, _]:
                self._commitments.pop(number)[0].end(at_s)
            case _:
                raise ValueError(f"unknown event {name!r}")
        return None

    def _takes(self, rates: dict[str, float], idle: list[str]) -> Takes:
        """What the pools were like at a choice: those of `idle` took nothing."""
        for text, rate in rates.items():
            if pool := self._pools.get(records.pool_from(text)):
                pool.transfer_bytes_per_s = rate
        not_taking = {records.pool_from(text) for text in idle}
        return lambda pool: pool.id not in not_taking

    def _route(
        self,
        at_s: float,
        model: str,
        identity: str,
        num_tokens: int,
        ids: list[str],
        block_size: int,
        kv_bytes_per_token: float,
        rates: dict[str, float],
        idle: list[str],
        decode: str | None,
        prefill: str | None,
    ) -> Decision:
        takes = self._takes(rates, idle)
        prompt = PromptBlocks(
            Weights(model, identity),
            num_tokens,
            records.ids_from(ids),
            block_size,
            kv_bytes_per_token,
        )
        choice = self._chooser.choose(prompt, takes, at_s)
        self._last = (choice, prompt) if choice else None
        return Decision(
            at_s,
            prompt,
            (
                records.pool_from(decode) if decode else None,
                records.pool_from(prefill) if prefill else None,
            ),
            (
                choice.decode.id if choice else None,
                choice.prefill.id if choice and choice.prefill else None,
            ),
        )
