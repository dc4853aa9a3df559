"""Log-probabilities of the model's own logits, before anything a request asks for changes them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from baton.engine.sampling.grouped_logits import GroupedLogits
from baton.types import PositionLogprobs

_BLOCK_ROWS = 16  # on the CPU: what a block needs stays in the cache, and is not fresh memory


def position_logprobs(
    logits: GroupedLogits, rows: Sequence[int], token_ids: Sequence[int], tops: Sequence[int]
) -> list[PositionLogprobs]:
    """Of token_ids[i] in rows[i], with its rank and the tops[i] most likely beside it.

    `rank` is 1 + the number of tokens strictly more likely. Equals among the alternatives ascend by
    token id; tokens of probability 0 are none. Every row needs a finite peak.
    """
    if len(rows) > _BLOCK_ROWS and logits.peaks.device.type == "cpu":
        blocks = [slice(i, i + _BLOCK_ROWS) for i in range(0, len(rows), _BLOCK_ROWS)]
        parts = [position_logprobs(logits, rows[b], token_ids[b], tops[b]) for b in blocks]
        return [found for part in parts for found in part]
    device = logits.peaks.device
    at = torch.tensor(rows, device=device)
    ones = torch.ones(len(rows), dtype=torch.float64, device=device)
    log_totals = logits.peaks[at].double() + logits.normalisers(at, ones).log()
    chosen = logits.at(at, torch.tensor(token_ids, device=device))
    logprobs = (chosen.double() - log_totals).tolist()
    ranks = (1 + logits.num_above(at, chosen)).tolist()
    alternatives = _alternatives(logits, at, log_totals, max(tops))
    return [
        PositionLogprobs(token_id, logprob, rank, tuple(alternatives[i][:top]))
        for i, (token_id, logprob, rank, top) in enumerate(
            zip(token_ids, logprobs, ranks, tops, strict=True)
        )
    ]


def _alternatives(
    logits: GroupedLogits, rows: Tensor, log_totals: Tensor, count: int
) -> list[list[tuple[int, float]]]:
    """(token, log-probability) of the `count` most likely tokens of each row."""
    if count == 0:
        return [[]] * len(rows)
    values, tokens = logits.largest(rows, count)
    tokens, order = tokens.sort(-1)
    values, order = values.gather(1, order).sort(dim=-1, descending=True, stable=True)
    tokens = tokens.gather(1, order)
    logprobs = values.double() - log_totals[:, None]
    return [
        [pair for pair in zip(*row, strict=True) if pair[1] > -math.inf]
        for row in zip(tokens.tolist(), logprobs.tolist(), strict=True)
    ]
