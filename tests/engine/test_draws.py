"""A sample that cannot be drawn for costs the others of its step nothing."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from baton.engine.sampling.draws import draw_each
from baton.engine.sampling.sampler import Sampler
from baton.errors import Internal
from baton.scheduling.step_plan import Drawn, NewSample
from baton.types import SamplingParams

VOCAB = 320
GREEDY = SamplingParams(max_tokens=9, temperature=0.0)


class Sampler13(Sampler):
    """Has a defect that sample 13 meets, whoever draws beside it."""

    def draw(self, logits: Tensor, handles: Sequence[int]) -> list[Drawn]:
        if 13 in handles:
            raise ZeroDivisionError("13")
        return super().draw(logits, handles)


def sampler_of(handles: Sequence[int]) -> Sampler13:
    sampler = Sampler13(VOCAB, torch.device("cpu"))
    for handle in handles:
        sampler.add(NewSample(handle, 0, GREEDY, (), ()))
    return sampler


def test_a_defect_that_one_sample_meets_fails_it_alone() -> None:
    handles = [7, 13, 9, 8]
    logits = torch.rand(4, VOCAB, generator=torch.Generator().manual_seed(1))
    logits[2, 5] = torch.nan
    before = logits.clone()
    drawn, failed = draw_each(sampler_of(handles), logits, handles)
    assert [each.handle for each in drawn] == [7, 8]
    assert [each.token_id for each in drawn] == logits[[0, 3]].argmax(-1).tolist()
    assert sorted(handle for handle, _ in failed) == [9, 13]
    assert all(error.code == "internal" for _, error in failed)
    assert torch.equal(logits.nan_to_num(), before.nan_to_num())


def test_a_step_of_samples_that_all_fail_ends_none_but_them() -> None:
    drawn, failed = draw_each(sampler_of([1, 2]), torch.full((2, VOCAB), torch.nan), [1, 2])
    assert drawn == []
    assert [handle for handle, _ in failed] == [1, 2]


def test_what_fails_whoever_draws_is_the_engines_fault() -> None:
    sampler = sampler_of([1, 2])
    with pytest.raises(Internal):
        draw_each(sampler, torch.zeros(2, VOCAB, dtype=torch.float64), [1, 2])
