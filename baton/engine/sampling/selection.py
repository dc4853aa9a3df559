"""Draws one token for each row that has a temperature.

top_p is settled by the draw itself: the winner among all tokens, if it is in the nucleus, is the
winner of the nucleus. If it is not, then nothing as unlikely is either, and the race is run again
above it, with the same noise. So the result is exactly that of the nucleus, without a sort. A race is
repeated seldom: with probability 1 - top_p, and about log(1 / top_p) times where top_p is small.
"""

from __future__ import annotations

import torch
from torch import Tensor

from baton.engine.sampling.grouped_logits import GroupedLogits
from baton.engine.sampling.race import Choices, race
from baton.engine.sampling.truncation import next_above, truncate

_BLOCK_ROWS = 16  # on the CPU: what a block needs stays in the cache, and is not fresh memory


def select(logits: GroupedLogits, choices: Choices) -> Tensor:
    """The drawn tokens: int64 [n]. Every row needs a finite peak."""
    if choices.rows.device.type != "cpu" or len(choices.rows) <= _BLOCK_ROWS:
        return _select(logits, choices)
    blocks = torch.arange(len(choices.rows)).split(_BLOCK_ROWS)
    return torch.cat([_select(logits, choices.part(block)) for block in blocks])


def _select(logits: GroupedLogits, choices: Choices) -> Tensor:
    floors, nucleus = truncate(logits, choices)
    tokens, winners = race(logits, choices, floors)
    places, masses = nucleus.places, nucleus.masses
    while places.numel():
        of = choices.part(places)
        above = logits.mass_above(of.rows, winners[places], of.temperatures)
        # Nothing is above the most likely token, which stays even where top_p is 0.
        outside = (above >= masses) & (above > 0.0)
        places, masses = places[outside], masses[outside]
        if places.numel():
            floor = next_above(winners[places])
            tokens[places], winners[places] = race(logits, choices.part(places), floor)
    return tokens
