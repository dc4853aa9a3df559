"""The noise: what it is made of, and that it is as random as a draw needs."""

from __future__ import annotations

import itertools
import math
import random

import numpy as np
import pytest
import torch
from torch import Tensor

from baton.engine.sampling.noise import GROUP_SIZE, group_minima, residuals, row_key, words
from tests.engine import sampling_reference as reference

NUM_KEYS = 4096


def keys_of(triples: list[tuple[int, int, int]]) -> Tensor:
    return torch.tensor([row_key(*triple) for triple in triples], dtype=torch.int32)


def variates(keys: Tensor, num_groups: int) -> Tensor:
    """The `e` of each token of the first groups: [num_keys, num_groups * GROUP_SIZE]."""
    excess = residuals(keys[:, None], torch.arange(num_groups))
    return (group_minima(keys, num_groups)[..., None] + excess).flatten(1)


def chi_square(counts: Tensor, expected: float) -> float:
    """In standard deviations from what uniform counts give; within +-6 but once in 10^8 times."""
    freedom = counts.numel() - 1
    statistic = float(((counts - expected) ** 2 / expected).sum())
    return (statistic - freedom) / math.sqrt(2 * freedom)


def test_words_are_those_of_the_definition_in_integers() -> None:
    rng = random.Random(1)
    extremes = [0, 1, -1, 2**31 - 1, -(2**31)]
    some = extremes + [rng.randrange(-(2**31), 2**31) for _ in range(200)]
    keys = list(itertools.product(extremes, extremes)) + list(itertools.pairwise(some))
    got = words(
        torch.tensor(keys, dtype=torch.int32)[:, None], torch.tensor(some, dtype=torch.int32)
    )
    want = [[reference.word(key, counter) for counter in some] for key in keys]
    assert (got.long() & 0xFFFFFFFF).tolist() == want


@pytest.mark.parametrize("triple", [(0, 0, 0), (2**63 - 1, 7, 4095), (-5, 1, 2), (2**64, 0, 1)])
def test_variates_are_those_of_the_definition(triple: tuple[int, int, int]) -> None:
    got = variates(keys_of([triple]), 20)[0].numpy()
    np.testing.assert_allclose(got, reference.variates(*triple, 20 * GROUP_SIZE), rtol=1e-13)


def test_variates_of_some_groups_are_those_of_all() -> None:
    keys = keys_of([(3, 0, 0), (4, 1, 9)])
    groups = torch.tensor([[5, 0], [2374, 5]])
    some = residuals(keys[:, None], groups)
    assert torch.equal(some[0, 0], residuals(keys[:1], torch.tensor([5]))[0])
    assert torch.equal(some[1, 0], residuals(keys[1:], torch.tensor([2374]))[0])
    assert not torch.equal(some[0, 0], some[1, 1])


def test_no_word_gives_an_infinite_or_zero_variate() -> None:
    # A word is a bijection of its counter, so some counters give the extremes; e is then far from
    # both 0 and infinity, and so is the Gumbel variate -log(e).
    least, most = -math.log1p(-(2.0**-33)), 33 * math.log(2)
    drawn = variates(keys_of([(0, 0, i) for i in range(64)]), 1024)
    assert drawn.min() >= least / GROUP_SIZE
    assert drawn.max() <= most * (1 + 1 / GROUP_SIZE)


@pytest.mark.parametrize("shift", [0, 8, 16, 24])
def test_every_byte_of_the_words_is_uniform_over_tokens(shift: int) -> None:
    counters = torch.arange(1 << 17, dtype=torch.int32)
    for key in keys_of([(0, 0, 0), (0, 0, 1), (1, 0, 0)]):
        values = (words(key, counters) >> shift).bitwise_and_(255)
        assert abs(chi_square(values.bincount(minlength=256), 512)) < 6


@pytest.mark.parametrize("token", [0, 1, 63, 64, 151_935])
def test_the_variate_of_a_token_is_exponential_over_keys(token: int) -> None:
    keys = keys_of([(seed, 0, 0) for seed in range(NUM_KEYS)])
    group, place = divmod(token, GROUP_SIZE)
    minima = group_minima(keys, group + 1)[:, group]
    drawn = minima + residuals(keys, torch.full((NUM_KEYS,), group))[:, place]
    cells = (torch.exp(-drawn) * 64).long()  # exp(-e) is uniform
    assert abs(chi_square(cells.bincount(minlength=64), NUM_KEYS / 64)) < 6


PAIRS = {
    "tokens of one group": ((0, 0, 0, 3), (0, 0, 0, 4)),
    "neighbouring groups": ((0, 0, 0, 63), (0, 0, 0, 64)),
    "consecutive outputs": ((0, 0, 0, 3), (0, 0, 1, 3)),
    "samples of one prompt": ((0, 0, 0, 3), (0, 1, 0, 3)),
    "consecutive seeds": ((0, 0, 0, 3), (1, 0, 0, 3)),
}


@pytest.mark.parametrize("pair", PAIRS.values(), ids=PAIRS.keys())
def test_variates_are_independent(pair: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
    cells = torch.zeros(NUM_KEYS * 4, dtype=torch.int64)
    for seed, sample, output, token in pair:
        keys = keys_of([(2 * i + seed, sample, output) for i in range(NUM_KEYS * 4)])
        cells = cells * 8 + (torch.exp(-variates(keys, 2)[:, token]) * 8).long()
    assert abs(chi_square(cells.bincount(minlength=64), NUM_KEYS / 16)) < 6


def test_each_token_leads_its_group_equally_often() -> None:
    keys = keys_of([(seed, 0, 0) for seed in range(NUM_KEYS)])
    leaders = (residuals(keys[:, None], torch.arange(4)) == 0.0).nonzero()[:, 2]
    assert len(leaders) == NUM_KEYS * 4
    assert abs(chi_square(leaders.bincount(minlength=GROUP_SIZE), NUM_KEYS / 16)) < 6
