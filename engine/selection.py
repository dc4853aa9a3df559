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

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from engine.grouped_logits import GroupedLogits
from engine.noise import GROUP_SIZE, group_minima, residuals

_LARGE_TOP_K = 512  # from here on the k-th largest alone is found faster than the k largest
_NUM_SPARE = 16  # how many logits equal to the k-th are looked for beside the k largest
_BLOCK_ROWS = 32  # on the CPU: what a block needs stays in the cache, and is not fresh memory
_NO_TOKEN = 1 << 62
_ROUNDING = 1e-9  # far above the error of a score, far below what makes a race longer


@dataclass(frozen=True, slots=True)
class Choices:
    """How to draw from rows `rows` int64 [n] of the logits. On their device, but for `limits`.

    `temperatures` > 0 float64 [n], `keys` int32 [n, 2]. `limits`: (top_k, top_p, min_p) of each.
    """

    rows: Tensor
    temperatures: Tensor
    keys: Tensor
    limits: Sequence[tuple[int, float, float]]

    def part(self, places: Tensor | slice) -> Choices:
        limits = (
            self.limits[places]
            if isinstance(places, slice)
            else [self.limits[place] for place in places.tolist()]
        )
        return Choices(self.rows[places], self.temperatures[places], self.keys[places], limits)


@dataclass(frozen=True, slots=True)
class _Nucleus:
    """Rows whose top_p awaits the winner: places in Choices [m], and the mass that top_p of all is."""

    places: Tensor
    masses: Tensor


def select(logits: GroupedLogits, choices: Choices) -> Tensor:
    """The drawn tokens: int64 [n]. Every row needs a finite peak."""
    num_rows = len(choices.limits)
    if choices.rows.device.type != "cpu" or num_rows <= _BLOCK_ROWS:
        return _select(logits, choices)
    blocks = [slice(i, i + _BLOCK_ROWS) for i in range(0, num_rows, _BLOCK_ROWS)]
    return torch.cat([_select(logits, choices.part(block)) for block in blocks])


def _select(logits: GroupedLogits, choices: Choices) -> Tensor:
    floors, nucleus = _floors(logits, choices)
    tokens, winners = _race(logits, choices, floors)
    places, masses = nucleus.places, nucleus.masses
    while places.numel():
        above = _mass_above(logits, choices, places, winners[places])
        # The most likely token stays even where top_p is 0.
        rejected = (above >= masses) & (above > 0.0)
        places, masses = places[rejected], masses[rejected]
        if places.numel():
            floor = torch.nextafter(winners[places], torch.full_like(winners[places], torch.inf))
            tokens[places], winners[places] = _race(logits, choices.part(places), floor)
    return tokens


def _race(logits: GroupedLogits, choices: Choices, floors: Tensor) -> tuple[Tensor, Tensor]:
    """Gumbel-max among the logits >= floors [n]: tokens int64 [n], and their logits [n]."""
    rows, keys = choices.rows, choices.keys
    peaks, temperatures = logits.peaks[rows].double()[:, None], choices.temperatures[:, None]
    maxima = logits.maxima[rows]
    minima = group_minima(keys, maxima.shape[1])
    bounds = maxima.double().sub_(peaks).div_(temperatures).sub_(minima.log())
    bounds.masked_fill_(maxima < floors[:, None], -torch.inf)

    def scores(index: Tensor, groups: Tensor) -> Tensor:
        """Of the tokens of some groups: index [m] into rows, groups [m] -> [m, GROUP_SIZE]."""
        values = logits.values[rows[index], groups]
        noise = residuals(keys[index], groups).add_(minima[index, groups][:, None]).log_()
        scored = values.double().sub_(peaks[index]).div_(temperatures[index]).sub_(noise)
        return scored.masked_fill_(values < floors[index, None], -torch.inf)

    # Few rows: more groups each, so that often no second look is needed; many: fewer, to save work.
    num_first = min(max(4, min(32, 128 // len(rows))), maxima.shape[1])
    reached, groups = bounds.topk(min(num_first + 1, maxima.shape[1]))
    index = torch.arange(len(rows), device=rows.device).repeat_interleave(num_first)
    groups = groups[:, :num_first].flatten()
    scored = scores(index, groups)
    best = scored.view(len(rows), -1).amax(-1) - _ROUNDING
    if reached.shape[1] > num_first and bool((reached[:, -1] >= best).any()):
        index, groups = (bounds >= best[:, None]).nonzero(as_tuple=True)
        scored = scores(index, groups)
    tokens = _winners(scored, index, groups, len(rows))
    return tokens, logits.at(rows, tokens)


def _winners(scored: Tensor, index: Tensor, groups: Tensor, num_rows: int) -> Tensor:
    """The best token of each row, the lowest id among equals. `index` and `groups` as in `scores`."""
    leading, places = scored.max(-1)
    best = scored.new_full((num_rows,), -torch.inf).scatter_reduce_(0, index, leading, "amax")
    tokens = (groups * GROUP_SIZE + places).masked_fill_(leading < best[index], _NO_TOKEN)
    return tokens.new_full((num_rows,), _NO_TOKEN).scatter_reduce_(0, index, tokens, "amin")


def _floors(logits: GroupedLogits, choices: Choices) -> tuple[Tensor, _Nucleus]:
    """The floors that top_k and min_p set, and top_p where it is cheap; and the rows where it is not."""
    rows, limits = choices.rows, choices.limits
    floors = logits.peaks.new_full((len(limits),), -torch.inf)
    small = [i for i, (top_k, _, _) in enumerate(limits) if 0 < top_k < _LARGE_TOP_K]
    large = [i for i, (top_k, _, _) in enumerate(limits) if top_k >= _LARGE_TOP_K]
    late = [i for i, (top_k, top_p, _) in enumerate(limits) if top_p < 1.0 and top_k == 0]
    cut = [i for i in large if limits[i][1] < 1.0]
    for place in large:
        floors[place] = logits.kth_largest(int(rows[place]), limits[place][0])
    if small:
        at = torch.tensor(small, device=rows.device)
        floors[at], refined, crowded = _small_top_k(logits, choices, at)
        cut += [place for place, is_so in zip(small, crowded, strict=True) if is_so]
    nucleus = _nucleus(logits, choices, floors, late, cut)
    if small:
        floors[at] = refined
    if any(min_p > 0.0 for _, _, min_p in limits):
        floors = torch.maximum(floors, _min_p_floors(logits, choices))
    return floors, nucleus


def _small_top_k(
    logits: GroupedLogits, choices: Choices, places: Tensor
) -> tuple[Tensor, Tensor, list[bool]]:
    """For rows with a small top_k: the floor of top_k; that with top_p; and whether so many logits
    equal the k-th that the list does not hold them all, so that top_p is still to be done."""
    rows = choices.rows[places]
    limits = [choices.limits[place] for place in places.tolist()]
    values, _ = logits.largest(rows, max(top_k for top_k, _, _ in limits) + _NUM_SPARE)
    width = values.shape[1]
    top_k = torch.tensor([min(k, width) for k, _, _ in limits], device=rows.device)[:, None]
    floors = values.gather(1, top_k - 1)
    if all(top_p >= 1.0 for _, top_p, _ in limits):
        return floors[:, 0], floors[:, 0], [False] * len(limits)
    top_p = torch.tensor(
        [[top_p] for _, top_p, _ in limits], dtype=torch.float64, device=rows.device
    )
    peaks, temperatures = logits.peaks[rows, None].double(), choices.temperatures[places, None]
    masses = values.double().sub_(peaks).div_(temperatures).exp_()
    sums = masses.masked_fill_(values < floors, 0.0).cumsum(-1)
    more_likely = torch.nn.functional.pad(sums[:, :-1], (1, 0))
    num_kept = (more_likely < top_p * sums[:, -1:]).sum(-1, keepdim=True).clamp_(min=1)
    refined = values.gather(1, num_kept - 1)
    spare = top_k - 1 + _NUM_SPARE
    last = values.gather(1, spare.clamp(max=width - 1))
    crowded = (spare < width) & (last == floors) & (top_p < 1.0)
    refined = torch.where(crowded | (top_p >= 1.0), floors, refined)
    return floors[:, 0], refined[:, 0], crowded[:, 0].tolist()


def _nucleus(
    logits: GroupedLogits, choices: Choices, floors: Tensor, late: list[int], cut: list[int]
) -> _Nucleus:
    """`late`: rows with top_p alone; `cut`: those where top_p takes its part of what `floors` leave."""
    device = choices.rows.device
    places = torch.tensor(late + cut, dtype=torch.int64, device=device)
    totals = []
    if late:
        at = places[: len(late)]
        totals.append(logits.normalisers(choices.rows[at], choices.temperatures[at]))
    if cut:
        at = places[len(late) :]
        below = torch.nextafter(floors[at], torch.full_like(floors[at], -torch.inf))
        totals.append(_mass_above(logits, choices, at, below))
    if not totals:
        return _Nucleus(places, places.double())
    top_p = [choices.limits[place][1] for place in late + cut]
    parts = torch.tensor(top_p, dtype=torch.float64, device=device)
    return _Nucleus(places, parts * torch.cat(totals))


def _min_p_floors(logits: GroupedLogits, choices: Choices) -> Tensor:
    """The least fp32 logits that are not under peak + temperature * log(min_p)."""
    min_p = torch.tensor(
        [min_p for _, _, min_p in choices.limits], dtype=torch.float64, device=choices.rows.device
    )
    exact = logits.peaks[choices.rows].double() + choices.temperatures * min_p.log()
    rounded = exact.float()
    return torch.where(
        rounded < exact, torch.nextafter(rounded, torch.full_like(rounded, torch.inf)), rounded
    )


def _mass_above(logits: GroupedLogits, choices: Choices, places: Tensor, bounds: Tensor) -> Tensor:
    """The mass of the logits > bounds [m] in the rows at `places` [m], the peak's being 1: float64."""
    rows = choices.rows[places]
    index, values = logits.above(rows, bounds)
    peaks, temperatures = logits.peaks[rows].double(), choices.temperatures[places]
    masses = values.double().sub_(peaks[index]).div_(temperatures[index]).exp_()
    return masses.new_zeros(len(rows)).index_add_(0, index, masses)
