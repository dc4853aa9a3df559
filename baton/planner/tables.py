"""Engine profiles out of published measurements. Pure: rows of a CSV file go in, as its columns name them.

Splitwise's table holds prompts and token times of single batches, so its fit is direct. The silicon
table holds whole servers at given concurrencies: a prompt's own time is the least TTFT that was seen at its
length, where hardly anybody waited.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from baton.errors import ConfigError
from baton.planner.profile import DecodeCost, EngineProfile
from baton.prefill_cost import PrefillCost
from baton.scheduling.least_squares import least_squares
from baton.scheduling.step_fit import StepFit

Row = Mapping[str, str]

_STEP_TOKENS = 8192


def splitwise(
    rows: Iterable[Row], model: str, hardware: str, tensor_parallel: str
) -> EngineProfile:
    """Raises ConfigError that names what there is, unless the table has this model and hardware."""
    wanted = (model, hardware, tensor_parallel)
    chosen = _chosen(rows, ("model", "hardware", "tensor_parallel"), wanted, "splitwise")
    prompts = [
        (int(row["prompt_size"]) * int(row["batch_size"]), float(row["prompt_time"]) / 1e3)
        for row in chosen
    ]
    tokens = [(int(row["batch_size"]), float(row["token_time"]) / 1e3) for row in chosen]
    return EngineProfile("/".join(("splitwise", *wanted)), _prefill(prompts), _decode(tokens))


def silicon(rows: Iterable[Row], model: str, system: str, precision: str) -> EngineProfile:
    """Of servers that are not disaggregated, whose columns say what one worker is."""
    rows = [row for row in rows if row["mode"] == "agg"]
    wanted = (model, system, precision)
    chosen = _chosen(rows, ("model_path", "system", "precision"), wanted, "silicon")
    least: dict[int, float] = {}
    for row in chosen:
        num_tokens, ttft_s = int(row["isl"]), float(row["silicon_ttft_ms"]) / 1e3
        least[num_tokens] = min(ttft_s, least.get(num_tokens, ttft_s))
    tokens = [(int(row["batch_size"]), float(row["silicon_tpot_ms"]) / 1e3) for row in chosen]
    return EngineProfile("/".join(("silicon", *wanted)), _prefill(least.items()), _decode(tokens))


def _prefill(points: Iterable[tuple[int, float]]) -> PrefillCost:
    fit = StepFit()
    for num_tokens, step_s in points:
        fit.observe(num_tokens, step_s)
    cost = fit.prefill_cost(_STEP_TOKENS)
    assert cost is not None, "there are rows"
    return cost


def _decode(points: Sequence[tuple[int, float]]) -> DecodeCost:
    """A line over the number of streams; flat where more of them do not take longer."""
    line = least_squares([(1.0 / step_s, num / step_s) for num, step_s in points])
    if line is None or min(line) < 0:
        return DecodeCost(sorted(step_s for _, step_s in points)[len(points) // 2])
    return DecodeCost(line[0], per_stream_s=line[1])


def _chosen(
    rows: Iterable[Row], columns: Sequence[str], wanted: Sequence[str], table: str
) -> list[Row]:
    rows = list(rows)
    chosen = [row for row in rows if tuple(row[column] for column in columns) == tuple(wanted)]
    if not chosen:
        known = sorted({"/".join(row[column] for column in columns) for row in rows})
        raise ConfigError(
            f"has no {'/'.join(wanted)}; it has {', '.join(known)}", field=f"profile {table}"
        )
    return chosen
