"""One request's timeline: its instants as phases, and both drawn for a terminal of 80 columns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from baton import instants
from baton.cli.output import count, joined, jsonable, milliseconds, plain_table
from baton.types import Timeline, Usage

_BAR_CELLS = 24
_EIGHTHS = " ▏▎▍▌▋▊▉█"
_COLORS = {"queue": "yellow", "prefill": "cyan", "transfer": "magenta", "decode": "green"}

# A phase begins at the first of its opening instants that happened.
_PHASES = {
    "queue": ((instants.RECEIVED,), instants.PREFILL_START),
    "prefill": ((instants.PREFILL_START,), instants.PREFILL_END),
    "transfer": ((instants.TRANSFER_START,), instants.TRANSFER_END),
    "decode": ((instants.DECODE_START, instants.FIRST_TOKEN), instants.FINISHED),
}


@dataclass(frozen=True, slots=True)
class Phase:
    """Half-open, in seconds since the router received the request. Phases may overlap: a transfer
    runs while the prefill goes on."""

    name: str
    start_s: float
    end_s: float

    @property
    def duration_s(self) -> float:
        return self.end_s - self.start_s


def phases(timeline: Timeline) -> list[Phase]:
    """Those whose both ends are known, in order. A request still queued has none."""
    events = timeline.events
    found = []
    for name, (openings, end) in _PHASES.items():
        start = next((opening for opening in openings if opening in events), None)
        if start is not None and end in events:
            # Instants of two processes may be a clock's error apart in the wrong order.
            found.append(Phase(name, events[start], max(events[start], events[end])))
    return found


def timeline_json(timeline: Timeline) -> dict[str, Any]:
    """The timeline with the phases' durations, `phases_s`, beside its instants."""
    durations = {phase.name: phase.duration_s for phase in phases(timeline)}
    return {**jsonable(timeline), "phases_s": durations}


def print_timeline(console: Console, usage: Usage, timeline: Timeline, *remarks: str) -> None:
    """Usage with `remarks`, phases to scale, and the instants."""
    console.print(joined((*_usage_parts(usage, timeline), *remarks), console.width), markup=False)
    console.print(_phase_table(usage, timeline))
    named = (
        f"{name} {milliseconds(timeline.events[name])}"
        for name in instants.ORDER
        if name in timeline.events
    )
    console.print(joined(named, console.width), style="dim")


def _usage_parts(usage: Usage, timeline: Timeline) -> list[str]:
    parts = [
        f"{count(usage.num_prompt_tokens, 'prompt token')} ({usage.num_cached_tokens:,} cached)",
        count(usage.num_output_tokens, "output token"),
    ]
    if instants.FIRST_TOKEN in timeline.events:
        parts.append(f"TTFT {milliseconds(timeline.events[instants.FIRST_TOKEN])}")
    if timeline.num_attempts > 1:
        parts.append(count(timeline.num_attempts, "attempt"))
    if timeline.num_preemptions:
        parts.append(count(timeline.num_preemptions, "preemption"))
    return parts


def _phase_table(usage: Usage, timeline: Timeline) -> Table:
    table = plain_table()
    table.add_column("phase", no_wrap=True)
    table.add_column("at", justify="right", no_wrap=True)
    table.add_column("took", justify="right", no_wrap=True)
    table.add_column("", no_wrap=True, width=_BAR_CELLS)
    table.add_column("", style="dim")
    found = phases(timeline)
    total_s = max((phase.end_s for phase in found), default=0.0)
    for phase in found:
        table.add_row(
            phase.name,
            milliseconds(phase.start_s),
            milliseconds(phase.duration_s),
            Text(bar(phase, total_s), style=_COLORS[phase.name]),
            _note(phase, usage, timeline),
        )
    return table


def bar(phase: Phase, total_s: float) -> str:
    """The phase to scale, in `_BAR_CELLS` cells for `total_s`: at least a sliver, in eighths of a
    cell at its end."""
    if total_s <= 0:
        return ""
    first = min(int(_BAR_CELLS * phase.start_s / total_s), _BAR_CELLS - 1)
    eighths = max(1, round(8 * _BAR_CELLS * phase.end_s / total_s) - 8 * first)
    full, rest = divmod(min(eighths, 8 * (_BAR_CELLS - first)), 8)
    return " " * first + "█" * full + (_EIGHTHS[rest] if rest else "")


def _note(phase: Phase, usage: Usage, timeline: Timeline) -> str:
    match phase.name:
        case "prefill":
            where = timeline.prefill_worker or timeline.decode_worker
            return f"{count(timeline.num_computed_tokens, 'token')} on {where}"
        case "transfer" if timeline.hand_off is not None:
            hand_off = timeline.hand_off
            exposed = milliseconds(hand_off.transfer_exposed_s)
            return f"{_bytes(hand_off.transfer_bytes)}, {exposed} exposed"
        case "decode" if phase.duration_s > 0 and usage.num_output_tokens > 1:
            # The first token is the prefill's.
            rate = (usage.num_output_tokens - 1) / phase.duration_s
            return f"{rate:,.0f} tokens/s on {timeline.decode_worker}"
    return ""


def _bytes(size_bytes: float) -> str:
    for unit in ("B", "kB", "MB"):
        if size_bytes < 1000:
            return f"{size_bytes:.3g} {unit}"
        size_bytes /= 1000
    return f"{size_bytes:.3g} GB"
