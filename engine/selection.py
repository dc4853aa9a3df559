"""Draws one token for each row: temperature, top_k, top_p, min_p, and Gumbel-max on what they leave.

All three keep the tokens whose logit is at least a floor, so that equal logits are kept or dropped
together (Hugging Face's processors agree, but for top_p, which there parts equals arbitrarily):

    top_k   at least as likely as the k-th most likely
    top_p   of those: whose strictly more likely ones have less than top_p of their mass
    min_p   at least min_p times as likely as the most likely

Nothing here sorts or noises a vocabulary. The race looks only at groups whose best possible score
reaches a score already seen. top_p is settled by the draw itself: the winner among all tokens, if top_p
keeps it, is the winner among those that it keeps; if not, nothing as unlikely is kept either, and the
race is run again above it.

Masses are float64; on the boundary itself rounding may decide, the same way in every batch.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from engine.grouped_logits import GroupedLogits
from engine.noise import GROUP_SIZE, group_minima, residuals

_LARGE_TOP_K = 512  # from here on the k-th largest alone is found faster than the k largest
_NUM_SPARE = 16  # how many logits equal to the k-th are looked for beside the k largest
_ROUNDING = 1e-9  # far above the error of a score, far below what makes a race longer


@dataclass(frozen=True, slots=True)
class Choices:
    """How to draw from rows `rows` int64 [n] of the logits. On their device, but for `limits`.

    `temperatures` > 0 float64 [n], `keys` int32 [n, 2]. `limits`: (top_k, top_p, min_p) of each.
    """

    rows: Tensor
    temperatures: Tensor
    keys: Tensor
    limits: list[tuple[int, float, float]]


@dataclass(frozen=True, slots=True)
class _Nucleus:
    """Rows whose top_p awaits the winner: places in Choices [m], and the mass that top_p of all is."""

    places: Tensor
    masses: Tensor


def select(logits: GroupedLogits, choices: Choices) -> Tensor:
    """The drawn tokens: int64 [n]. Every row needs a finite peak."""
    floors, nucleus = _floors(logits, choices)
    tokens, winners = _race(logits, choices, floors)
    places, masses = nucleus.places, nucleus.masses
    while places.numel():
        above = _mass_above(logits, choices, places, winners[places])
        rejected = above >= masses
        # The most likely token stays even where top_p is 0.
        rejected &= winners[places] < logits.peaks[choices.rows[places]]
        places, masses = places[rejected], masses[rejected]
        if places.numel():
            floor = torch.nextafter(winners[places], torch.full_like(winners[places], torch.inf))
            tokens[places], winners[places] = _race(logits, _subset(choices, places), floor)
    return tokens


def _subset(choices: Choices, places: Tensor) -> Choices:
    return Choices(
        choices.rows[places], choices.temperatures[places], choices.keys[places], limits=[]
    )


def _race(logits: GroupedLogits, choices: Choices, floors: Tensor) -> tuple[Tensor, Tensor]:
    """Gumbel-max among the logits >= floors [n]: tokens int64 [n], and their logits [n]."""
    rows, keys = choices.rows, choices.keys
    peaks = logits.peaks[rows].double()

    def scaled(values: Tensor, index: Tensor | slice) -> Tensor:
        return (values - peaks[index, None]) / choices.temperatures[index, None]

    maxima = logits.maxima[rows]
    minima = group_minima(keys, maxima.shape[1])
    bounds = scaled(maxima, slice(None)) - minima.log()
    bounds.masked_fill_(maxima < floors[:, None], -torch.inf)

    def scores(index: Tensor, groups: Tensor) -> tuple[Tensor, Tensor]:
        """Of the tokens of some groups: index [m] into rows, groups [m] -> twice [m, GROUP_SIZE]."""
        values = logits.values[rows[index], groups]
        noise = residuals(keys[index], groups).add_(minima[index, groups][:, None]).log_()
        scored = scaled(values, index) - noise
        return scored.masked_fill_(values < floors[index, None], -torch.inf), values

    # Few rows: more groups each, so that often no second look is needed; many: fewer, to save work.
    num_first = min(max(4, min(32, 128 // len(rows))), maxima.shape[1])
    reached, groups = bounds.topk(min(num_first + 1, maxima.shape[1]))
    index = torch.arange(len(rows), device=rows.device).repeat_interleave(num_first)
    groups = groups[:, :num_first].flatten()
    scored, values = scores(index, groups)
    best = scored.view(len(rows), -1).amax(-1) - _ROUNDING
    if reached.shape[1] > num_first and bool((reached[:, -1] >= best).any()):
        index, groups = (bounds >= best[:, None]).nonzero(as_tuple=True)
        scored, values = scores(index, groups)
    return _winners(scored, values, index, groups, len(rows))


def _winners(
    scored: Tensor, values: Tensor, index: Tensor, groups: Tensor, num_rows: int
) -> tuple[Tensor, Tensor]:
    """The best token of each row, the lowest id among equals, and its logit."""
    leading, places = scored.max(-1)
    best = scored.new_full((num_rows,), -torch.inf).scatter_reduce_(0, index, leading, "amax")
    tokens = (groups * GROUP_SIZE + places).masked_fill(leading < best[index], _NO_TOKEN)
    winners = tokens.new_full((num_rows,), _NO_TOKEN).scatter_reduce_(0, index, tokens, "amin")
    found = values.gather(1, places[:, None])[:, 0].masked_fill_(tokens > winners[index], -torch.inf)
    logits = found.new_full((num_rows,), -torch.inf).scatter_reduce_(0, index, found, "amax")
    return winners, logits
