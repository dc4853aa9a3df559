"""A cluster's workers and requests as tables that fit 80 columns."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from baton import instants
from baton.cli.output import count, jsonable, milliseconds, plain_table
from baton.cli.timeline import phases, timeline_json
from baton.client.results import RequestStatus
from baton.client.sync_client import Client
from baton.state.base import Member
from baton.types import PoolLoad

_BAR_CELLS = 8
_IDENTITY_CHARS = 6  # tell two sets of weights apart
_LEASE_WARNING_S = 2.0
_STATE_STYLES = {"waiting": "yellow", "running": "cyan"}


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A moment of the cluster. `requests`: None where they were not asked for. Tokens are counted since the
    router started, and their rates are since the moment before, None for the first one."""

    workers: Sequence[Member]
    num_running_requests: int
    num_waiting_requests: int
    requests: Sequence[RequestStatus] | None = None
    taken_s: float = 0.0  # monotonic
    num_prompt_tokens: int = 0
    num_output_tokens: int = 0
    prompt_tokens_per_s: float | None = None
    output_tokens_per_s: float | None = None

    @classmethod
    def take(cls, client: Client, num_requests: int, before: Snapshot | None = None) -> Snapshot:
        load, taken_s = client.load(), time.monotonic()
        requests = client.requests(num_requests) if num_requests else None
        taken = cls(
            client.workers(),
            load.num_running_requests,
            load.num_waiting_requests,
            requests,
            taken_s,
            load.num_prompt_tokens,
            load.num_output_tokens,
        )
        return taken if before is None else taken.since(before)

    def since(self, before: Snapshot) -> Snapshot:
        """With rates. A router that restarted counts from 0 again."""
        seconds = self.taken_s - before.taken_s
        num_prompt = self.num_prompt_tokens - before.num_prompt_tokens
        num_output = self.num_output_tokens - before.num_output_tokens
        if seconds <= 0 or num_prompt < 0 or num_output < 0:
            return self
        return replace(
            self,
            prompt_tokens_per_s=num_prompt / seconds,
            output_tokens_per_s=num_output / seconds,
        )


def snapshot_json(snapshot: Snapshot) -> dict[str, Any]:
    """Requests with the durations of their phases, as `baton generate --json` has them."""
    shown: dict[str, Any] = jsonable(snapshot)
    for status, request in zip(shown["requests"] or (), snapshot.requests or (), strict=True):
        status["timeline"] = timeline_json(request.timeline)
    return shown


def render(snapshot: Snapshot) -> RenderableType:
    parts: list[RenderableType] = [
        f"[bold]{count(len(snapshot.workers), 'worker')}[/]"
        f" · {snapshot.num_running_requests:,} running"
        f" · {snapshot.num_waiting_requests:,} waiting at the router",
    ]
    if snapshot.output_tokens_per_s is not None:
        parts.append(
            f"[bold]{snapshot.output_tokens_per_s:,.0f}[/] output tokens/s"
            f" · {snapshot.prompt_tokens_per_s:,.0f} prompt tokens/s"
        )
    if snapshot.workers:
        parts.append(_workers(snapshot.workers))
    parts += [
        f"[yellow]workers of {escape(model)} have several sets of weights (under the role)[/]"
        for model in _mixed(snapshot.workers)
    ]
    if snapshot.requests is not None:
        parts.append("")
        parts.append(_requests(snapshot.requests) if snapshot.requests else "no requests yet")
    return Group(*parts)


def _mixed(members: Sequence[Member]) -> set[str]:
    """The models that are served with more than one set of weights."""
    sets = {member.info.weights for member in members}
    models = Counter(each.model for each in sets)
    return {model for model, count in models.items() if count > 1}


def _workers(members: Sequence[Member]) -> Table:
    mixed = _mixed(members)
    table = plain_table()
    table.add_column("worker", overflow="fold", min_width=15)
    table.add_column("model", overflow="fold")
    table.add_column("blocks held", no_wrap=True)
    table.add_column("run/wait", justify="right", no_wrap=True)
    table.add_column("prefill/s", justify="right", no_wrap=True)
    table.add_column("lease", justify="right", no_wrap=True)
    for member in members:
        info = member.info
        name = Text(info.worker_id, style="bold").append(f"\n{info.address}", style="not bold dim")
        model = Text(info.model).append(f"\n{info.role.name.lower()}", style="dim")
        if info.model in mixed:
            weights = info.fingerprint.identity[:_IDENTITY_CHARS]
            model.append(f"\n{weights}", style="yellow")
        lease = _lease(member)
        if not member.loads:
            table.add_row(name, model, Text("not reported yet", style="dim"), "", "", lease)
        for load in member.loads:
            table.add_row(name, model, *_load_cells(load), lease)
            name, model, lease = Text(), Text(), Text()  # once for all pools of the worker
    return table


def _load_cells(load: PoolLoad) -> tuple[RenderableType, ...]:
    running = f"{load.num_running_requests}/{load.num_waiting_requests}"
    return _blocks(load), running, _speed(load)


def _speed(load: PoolLoad) -> Text:
    """Measured by the worker; nothing before its first step."""
    text = Text()
    if load.prefill_tokens_per_s:
        text.append(f"{load.prefill_tokens_per_s:,.0f}")
    if load.decode_step_s:
        text.append(f"\nstep {milliseconds(load.decode_step_s)}", style="dim")
    return text


def _blocks(load: PoolLoad) -> Text:
    """A bar of held and cached blocks, and below it their numbers."""
    total = max(1, load.num_total_blocks)
    held = round(_BAR_CELLS * load.num_held_blocks / total)
    cached = min(_BAR_CELLS - held, round(_BAR_CELLS * load.num_cached_blocks / total))
    text = Text("█" * held, style="green")
    text.append("█" * cached, style="blue")
    text.append("░" * (_BAR_CELLS - held - cached), style="dim")
    text.append(f" {load.num_held_blocks:,} of {load.num_total_blocks:,}", style="not dim")
    text.append(f"\n{load.num_cached_blocks:,} cached", style="dim")
    if load.num_quarantined_blocks:
        text.append(f"\n{load.num_quarantined_blocks:,} quarantined", style="yellow")
    return text


def _lease(member: Member) -> Text:
    if member.hung:
        return Text("hung", style="red")
    if member.draining:
        return Text("draining", style="yellow")
    short = member.lease_remaining_s < _LEASE_WARNING_S
    return Text(f"{member.lease_remaining_s:.1f} s", style="red" if short else "green")


def _requests(requests: Sequence[RequestStatus]) -> Table:
    table = plain_table()
    table.add_column("request", no_wrap=True, max_width=14)
    table.add_column("state", no_wrap=True)
    table.add_column("in", justify="right", no_wrap=True)
    table.add_column("cached", justify="right", no_wrap=True)
    table.add_column("out", justify="right", no_wrap=True)
    table.add_column("queue", justify="right", no_wrap=True)
    table.add_column("prefill", justify="right", no_wrap=True)
    table.add_column("decode", justify="right", no_wrap=True)
    table.add_column("total", justify="right", no_wrap=True)
    for request in requests:
        usage, events = request.usage, request.timeline.events
        took = {phase.name: milliseconds(phase.duration_s) for phase in phases(request.timeline)}
        total = milliseconds(events[instants.FINISHED]) if instants.FINISHED in events else ""
        table.add_row(
            request.request_id,
            Text(request.state, style=_state_style(request.state)),
            f"{usage.num_prompt_tokens:,}",
            f"{usage.num_cached_tokens:,}",
            f"{usage.num_output_tokens:,}",
            took.get("queue", ""),
            _at(took.get("prefill", ""), request.timeline.prefill_worker),
            _at(took.get("decode", ""), request.timeline.decode_worker),
            total,
        )
    return table


def _at(took: str, worker: str) -> Text:
    """How long, and below it where."""
    text = Text(took)
    if worker:
        text.append(f"\n{worker}", style="dim")
    return text


def _state_style(state: str) -> str:
    if state in _STATE_STYLES:
        return _STATE_STYLES[state]
    return "" if set(state.split("+")) <= {"stop", "length"} else "red"
