"""Logits in groups of consecutive tokens, with the largest of each group.

Everything a sampler asks (the largest, the k largest, those above a bound) concerns few groups, and the
maxima tell which: one pass over the logits, and the rest looks at a few thousand numbers.

Knows no parameters and no noise.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from engine.noise import GROUP_SIZE

# A temperature below this is this one: logits stay finite, and the best token has all the mass anyway.
_LEAST_TEMPERATURE = 1e-30


def pad_to_groups(logits: Tensor) -> Tensor:
    """`logits` [num_rows, vocab_size] as a dense tensor of whole groups, padded with -inf."""
    padding = -logits.shape[1] % GROUP_SIZE
    if padding:
        return torch.nn.functional.pad(logits, (0, padding), value=-torch.inf)
    return logits.contiguous()


@dataclass(frozen=True, slots=True)
class GroupedLogits:
    """`values` [num_rows, num_groups, GROUP_SIZE], `maxima` [num_rows, num_groups], `peaks` [num_rows].

    A NaN makes its row's peak NaN.
    """

    values: Tensor
    maxima: Tensor
    peaks: Tensor

    @staticmethod
    def of(padded: Tensor) -> GroupedLogits:
        """Of what `pad_to_groups` returned, as a view of it."""
        values = padded.unflatten(1, (-1, GROUP_SIZE))
        maxima = values.amax(-1)
        return GroupedLogits(values, maxima, maxima.amax(-1))

    def argmax(self) -> Tensor:
        """The most likely token of each row, the lowest id among equals: int64 [num_rows]."""
        groups = self.maxima.argmax(-1)
        rows = torch.arange(groups.shape[0], device=groups.device)
        return groups * GROUP_SIZE + self.values[rows, groups].argmax(-1)

    def at(self, rows: Tensor, tokens: Tensor) -> Tensor:
        return self.values[rows, tokens // GROUP_SIZE, tokens % GROUP_SIZE]

    def largest(self, rows: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """Values and tokens of the `count` largest logits of each of `rows`, descending: each
        [len(rows), count], less where the vocabulary is smaller.

        They lie in the `count` groups with the largest maxima: were one elsewhere, each of those
        groups would hold one at least as large.
        """
        num_groups = self.maxima.shape[1]
        if count * 4 > num_groups:
            whole = self.values[rows].flatten(1)
            values, tokens = whole.topk(min(count, whole.shape[1]))
            return values, tokens
        groups = self.maxima[rows].topk(count).indices
        values, places = self.values[rows[:, None], groups].flatten(1).topk(count)
        chosen = groups.gather(1, places // GROUP_SIZE)
        return values, chosen * GROUP_SIZE + places % GROUP_SIZE

    def kth_largest(self, row: int, k: int) -> Tensor:
        """The k-th largest logit of one row; for k too large for `largest`."""
        whole = self.values[row].flatten()
        return whole.kthvalue(max(1, whole.shape[0] - k + 1)).values

    def above(self, rows: Tensor, bounds: Tensor) -> tuple[Tensor, Tensor]:
        """The logits of `rows` [n] that exceed their row's bound [n]: each one's index into rows, and
        its value, both [m]."""
        index, groups = (self.maxima[rows] > bounds[:, None]).nonzero(as_tuple=True)
        values = self.values[rows[index], groups]
        exceeds = values > bounds[index, None]
        return index.repeat_interleave(exceeds.sum(-1)), values[exceeds]

    def normalisers(self, rows: Tensor, temperatures: Tensor) -> Tensor:
        """Sums of exp((logit - peak) / temperature) over each of `rows`: float64 [len(rows)].

        On the CPU row by row: that stays in the cache, and no row's bits depend on its neighbours.
        """
        temperatures = temperatures.clamp(min=_LEAST_TEMPERATURE)
        if rows.device.type != "cpu":
            scaled = self.values[rows].flatten(1) / temperatures[:, None].float()
            return 1.0 / scaled.softmax(-1).amax(-1).double()
        peaks = []
        for row, temperature in zip(rows.tolist(), temperatures.tolist(), strict=True):
            whole = self.values[row].flatten()
            scaled = whole if temperature == 1.0 else whole / temperature
            peaks.append(scaled.softmax(-1).amax())
        return 1.0 / torch.stack(peaks).double()
