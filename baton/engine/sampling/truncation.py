"""What top_k, top_p and min_p leave of each row: the tokens whose logit is at least a floor.

    top_k   those at least as likely as the k-th most likely
    top_p   of these, those whose strictly more likely ones have less than top_p of their mass
    min_p   those at least min_p times as likely as the most likely

So equal logits are kept or dropped together. (Hugging Face's processors keep the same, except that its
top_p keeps arbitrary ones of the equals at its boundary.) After a small top_k, top_p is a floor too;
otherwise finding it would mean sorting the vocabulary, and it is left as a mass for the draw to respect.

Knows no noise.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from baton.engine.sampling.grouped_logits import GroupedLogits
from baton.engine.sampling.race import Choices

_LARGE_TOP_K = 512  # from here on the k-th largest alone is found faster than the k largest
_NUM_SPARE = 16  # how many equals of the k-th largest are looked for beside the k largest


@dataclass(frozen=True, slots=True)
class Nucleus:
    """The rows whose top_p is left to the draw: `places` in Choices, int64 [m]. A token is in the
    nucleus while the logits above its own have less than `masses` float64 [m], the peak having 1."""

    places: Tensor
    masses: Tensor


def truncate(logits: GroupedLogits, choices: Choices) -> tuple[Tensor, Nucleus]:
    """The floors fp32 [n], -inf where all tokens stay, and what of top_p is not in them."""
    rows, limits = choices.rows, choices.limits
    floors = logits.peaks.new_full((len(limits),), -torch.inf)
    few = [i for i, (top_k, _, _) in enumerate(limits) if 0 < top_k < _LARGE_TOP_K]
    left = [i for i, (_, top_p, _) in enumerate(limits) if top_p < 1.0 and i not in few]
    for place, (top_k, _, _) in enumerate(limits):
        if top_k >= _LARGE_TOP_K:
            floors[place] = logits.kth_largest(int(rows[place]), top_k)
    if few:
        at = torch.tensor(few, device=rows.device)
        floors[at], crowded = _few_floors(logits, choices.part(at))
        left += [place for place, is_crowded in zip(few, crowded, strict=True) if is_crowded]
    nucleus = _nucleus(logits, choices, floors, left)
    if any(min_p > 0.0 for _, _, min_p in limits):
        floors = torch.maximum(floors, _min_p_floors(logits, choices))
    return floors, nucleus


def _few_floors(logits: GroupedLogits, choices: Choices) -> tuple[Tensor, list[bool]]:
    """The floors of rows that all have a small top_k, top_p included; but where so many logits equal
    the k-th largest that the list does not hold them all, that of top_k alone, and True."""
    limits, device = choices.limits, choices.rows.device
    values, _ = logits.largest(choices.rows, max(top_k for top_k, _, _ in limits) + _NUM_SPARE)
    width = values.shape[1]
    last = torch.tensor([[min(top_k, width) - 1] for top_k, _, _ in limits], device=device)
    floors = values.gather(1, last)
    if all(top_p >= 1.0 for _, top_p, _ in limits):
        return floors[:, 0], [False] * len(limits)
    top_p = torch.tensor([[p] for _, p, _ in limits], dtype=torch.float64, device=device)
    peaks = logits.peaks[choices.rows, None].double()
    masses = values.double().sub_(peaks).div_(choices.temperatures[:, None]).exp_()
    sums = masses.masked_fill_(values < floors, 0.0).cumsum(-1)
    more_likely = torch.nn.functional.pad(sums[:, :-1], (1, 0))
    num_kept = (more_likely < top_p * sums[:, -1:]).sum(-1, keepdim=True).clamp_(min=1)
    spare = last + _NUM_SPARE
    crowded = (spare < width) & (values.gather(1, spare.clamp(max=width - 1)) == floors)
    crowded &= top_p < 1.0
    refined = torch.where(crowded | (top_p >= 1.0), floors, values.gather(1, num_kept - 1))
    return refined[:, 0], crowded[:, 0].tolist()


def _nucleus(logits: GroupedLogits, choices: Choices, floors: Tensor, left: list[int]) -> Nucleus:
    """That of the rows at places `left`, whose `floors` are those of top_k."""
    device = choices.rows.device
    masses = torch.tensor(
        [choices.limits[place][1] for place in left], dtype=torch.float64, device=device
    )
    whole = [i for i, place in enumerate(left) if choices.limits[place][0] == 0]
    cut = [i for i, place in enumerate(left) if choices.limits[place][0] != 0]
    places = torch.tensor(left, dtype=torch.int64, device=device)
    if whole:
        of = choices.part(places[whole])
        masses[whole] *= logits.normalisers(of.rows, of.temperatures)
    if cut:
        of = choices.part(places[cut])
        below = -next_above(-floors[places[cut]])
        masses[cut] *= logits.mass_above(of.rows, below, of.temperatures)
    return Nucleus(places, masses)


def _min_p_floors(logits: GroupedLogits, choices: Choices) -> Tensor:
    """The least fp32 logits that are not under peak + temperature * log(min_p)."""
    min_p = torch.tensor(
        [min_p for _, _, min_p in choices.limits], dtype=torch.float64, device=choices.rows.device
    )
    exact = logits.peaks[choices.rows].double() + choices.temperatures * min_p.log()
    rounded = exact.float()
    return torch.where(rounded < exact, next_above(rounded), rounded)


def next_above(values: Tensor) -> Tensor:
    """The next larger fp32 numbers."""
    return torch.nextafter(values, torch.full_like(values, torch.inf))
