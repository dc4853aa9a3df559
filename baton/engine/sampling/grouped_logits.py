"""Logits in groups of consecutive tokens, with the largest of each group.

Most of what a sampler asks (the largest, the k largest, those above a bound) concerns few groups, and
the maxima tell which: one pass over the logits, and the rest looks at a few thousand numbers.

Knows no parameters and no noise.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from baton.engine.sampling.noise import GROUP_SIZE


def pad_to_groups(logits: Tensor) -> Tensor:
    """`logits` [num_rows, vocab_size] as a dense tensor of whole groups, padded with -inf."""
    padding = -logits.shape[1] % GROUP_SIZE
    if padding:
        return torch.nn.functional.pad(logits, (0, padding), value=-torch.inf)
    return logits.contiguous()


@dataclass(frozen=True, slots=True)
class GroupedLogits:
    """`values` [num_rows, num_groups, GROUP_SIZE], `maxima` [num_rows, num_groups] and `peaks`
    [num_rows], which is NaN where any logit of the row is."""

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
            found = whole.topk(min(count, whole.shape[1]))
            return found.values, found.indices
        groups = self.maxima[rows].topk(count).indices
        of_rows = rows.repeat_interleave(count)
        values = self.members(of_rows, groups.flatten()).view(len(rows), -1)
        values, places = values.topk(count)
        chosen = groups.gather(1, places // GROUP_SIZE)
        return values, chosen * GROUP_SIZE + places % GROUP_SIZE

    def kth_largest(self, row: int, k: int) -> Tensor:
        """The k-th largest logit of one row; for k too large for `largest`."""
        whole = self.values[row].flatten()
        return whole.kthvalue(max(1, whole.shape[0] - k + 1)).values

    def members(self, rows: Tensor, groups: Tensor) -> Tensor:
        """The logits of groups [m] of rows [m]: a copy [m, GROUP_SIZE]."""
        # index_select copies whole groups, several times faster than indexing.
        return self.values.flatten(0, 1).index_select(0, rows * self.maxima.shape[1] + groups)

    def num_above(self, rows: Tensor, bounds: Tensor) -> Tensor:
        """How many logits of each of `rows` [n] exceed its bound [n]: int64 [n]."""
        index, _, exceeds = self._above(rows, bounds)
        return torch.zeros_like(rows).index_add_(0, index, exceeds.sum(-1).long())

    def mass_above(self, rows: Tensor, bounds: Tensor, temperatures: Tensor) -> Tensor:
        """The sum of exp((logit - peak) / temperature) over those logits: float64 [n]."""
        index, values, exceeds = self._above(rows, bounds)
        values.sub_(self.peaks[rows][index, None]).div_(temperatures.float()[index, None])
        masses = values.exp_().mul_(exceeds).sum(-1, dtype=torch.float64)
        return masses.new_zeros(len(rows)).index_add_(0, index, masses)

    def _above(self, rows: Tensor, bounds: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The groups that hold such a logit: their index into rows [m], their logits, and 1.0 for
        each that exceeds the bound, 0.0 for the others, both [m, GROUP_SIZE]."""
        index, groups = (self.maxima[rows] > bounds[:, None]).nonzero(as_tuple=True)
        values = self.members(rows[index], groups)
        exceeds = torch.gt(values, bounds[index, None], out=torch.empty_like(values))
        return index, values, exceeds

    def normalisers(self, rows: Tensor, temperatures: Tensor) -> Tensor:
        """Sums of exp((logit - peak) / temperature) over each of `rows`: float64 [len(rows)].

        On the CPU row by row: that stays in the cache, and no row's bits depend on its neighbours.
        """
        if rows.device.type != "cpu":
            scaled = self.values[rows].flatten(1) / temperatures[:, None].float()
            return 1.0 / scaled.softmax(-1).amax(-1).double()
        peaks = []
        for row, temperature in zip(rows.tolist(), temperatures.tolist(), strict=True):
            whole = self.values[row].flatten()
            scaled = whole if temperature == 1.0 else whole / temperature
            peaks.append(scaled.softmax(-1).amax())
        return 1.0 / torch.stack(peaks).double()
