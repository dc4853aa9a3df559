"""Gumbel-max over whole vocabularies, looking at few of their tokens.

A token's score is (logit - peak) / temperature - log(e), with the `e` of `noise.py`; the best wins.
No score in a group of tokens exceeds what the group's largest logit would have with the group's least
`e`, so only groups whose bound reaches a score already seen can hold the winner: of thousands of
groups, each told by one number, some tens are looked into.

Knows no top_k, top_p or min_p: to it they are a floor under the logits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from baton.engine.sampling.grouped_logits import GroupedLogits
from baton.engine.sampling.noise import GROUP_SIZE, group_minima, residuals

_NO_TOKEN = 1 << 62
_ROUNDING = 1e-9  # far above the error of a score, too little to let more groups in


@dataclass(frozen=True, slots=True)
class Choices:
    """How to draw from `rows` int64 [n] of the logits; tensors on the logits' device.

    `temperatures` float64 [n], all > 0; `keys` int32 [n, 2]; `limits`: (top_k, top_p, min_p) of each.
    """

    rows: Tensor
    temperatures: Tensor
    keys: Tensor
    limits: Sequence[tuple[int, float, float]]

    def part(self, places: Tensor) -> Choices:
        limits = [self.limits[place] for place in places.tolist()]
        return Choices(self.rows[places], self.temperatures[places], self.keys[places], limits)


def race(logits: GroupedLogits, choices: Choices, floors: Tensor) -> tuple[Tensor, Tensor]:
    """The winners among the logits >= floors [n]: tokens int64 [n], and their logits [n].

    No floor may exceed its row's peak.
    """
    rows, keys = choices.rows, choices.keys
    peaks, temperatures = logits.peaks[rows].double()[:, None], choices.temperatures[:, None]
    maxima = logits.maxima[rows]
    minima = group_minima(keys, maxima.shape[1])
    bounds = maxima.double().sub_(peaks).div_(temperatures).sub_(minima.log())
    bounds.masked_fill_(maxima < floors[:, None], -torch.inf)

    def scores(index: Tensor, groups: Tensor) -> Tensor:
        """Of the tokens of some groups: index [m] into rows, groups [m] -> [m, GROUP_SIZE]."""
        values = logits.members(rows[index], groups)
        noise = residuals(keys[index], groups).add_(minima[index, groups][:, None]).log_()
        scored = values.double().sub_(peaks[index]).div_(temperatures[index]).sub_(noise)
        return scored.masked_fill_(values < floors[index, None], -torch.inf)

    # Few rows: more groups of each, so that often no second look is needed.
    num_first = min(max(4, min(32, 128 // len(rows))), maxima.shape[1])
    reached, first = bounds.topk(min(num_first + 1, maxima.shape[1]))
    index = torch.arange(len(rows), device=rows.device).repeat_interleave(num_first)
    groups = first[:, :num_first].flatten()
    scored = scores(index, groups)
    best = scored.view(len(rows), -1).amax(-1) - _ROUNDING
    if reached.shape[1] > num_first and bool((reached[:, -1] >= best).any()):
        index, groups = (bounds >= best[:, None]).nonzero(as_tuple=True)
        scored = scores(index, groups)
    tokens = _winners(scored, index, groups, len(rows))
    return tokens, logits.at(rows, tokens)


def _winners(scored: Tensor, index: Tensor, groups: Tensor, num_rows: int) -> Tensor:
    """The best token of each row, the lowest id among equals; arguments as in `scores`."""
    leading, places = scored.max(-1)
    best = scored.new_full((num_rows,), -torch.inf).scatter_reduce_(0, index, leading, "amax")
    tokens = (groups * GROUP_SIZE + places).masked_fill_(leading < best[index], _NO_TOKEN)
    return tokens.new_full((num_rows,), _NO_TOKEN).scatter_reduce_(0, index, tokens, "amin")
