"""What is drawn: by definition, by distribution, and the same whatever else is in the batch."""

from __future__ import annotations

import dataclasses
import math
import random
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from baton.engine.sampling.sampler import NonFiniteLogits, Sampler
from baton.errors import Internal
from baton.scheduling.step_plan import Drawn, NewSample
from baton.types import SamplingParams
from tests.engine import sampling_reference as reference

CPU = torch.device("cpu")
NO_TOKENS: Any = torch.zeros(1, 0, dtype=torch.long)  # transformers asks for its LongTensor
GREEDY = SamplingParams(max_tokens=100, temperature=0.0)


def sample(handle: int, params: SamplingParams, **rest: Any) -> NewSample:
    given = {"sample_index": 0, "prompt_token_ids": (), "output_token_ids": (), **rest}
    return NewSample(handle=handle, params=params, **given)


def sampler_of(vocab_size: int, samples: Iterable[NewSample]) -> Sampler:
    sampler = Sampler(vocab_size, CPU)
    for new in samples:
        sampler.add(new)
    return sampler


def draw_one(logits: Sequence[float] | Tensor, params: SamplingParams, **rest: Any) -> Drawn:
    row = torch.as_tensor(logits, dtype=torch.float32)[None]
    sampler = sampler_of(row.shape[1], [sample(0, params, **rest)])
    return sampler.draw(row, [0])[0]


def random_params(rng: random.Random) -> SamplingParams:
    """Any combination of what changes a draw, each neutral half of the time."""
    some: dict[str, Any] = {
        "temperature": rng.choice([0.0, 0.1, 0.7, 1.0, 1.5, 5.0]),
        "top_k": rng.choice([1, 2, 10, 50, 600, 10**9]),
        "top_p": rng.choice([0.0, 0.01, 0.3, 0.8, 0.95, 0.999]),
        "min_p": rng.choice([0.001, 0.05, 0.5, 1.0]),
        "repetition_penalty": rng.choice([0.5, 1.3]),
        "frequency_penalty": rng.choice([-1.0, 0.7]),
        "presence_penalty": rng.choice([-0.5, 1.1]),
        "logit_bias": {rng.randrange(50): rng.uniform(-5, 5) for _ in range(3)},
        "min_tokens": rng.randrange(12),
        "logprobs": rng.choice([0, 3]),
    }
    chosen = {name: value for name, value in some.items() if rng.random() < 0.5}
    return SamplingParams(max_tokens=100, seed=rng.randrange(2**32), stop_token_ids=(7,), **chosen)


def random_logits(rng: random.Random, vocab_size: int) -> Tensor:
    """Flat, peaked, with many equals, or mostly impossible."""
    generator = torch.Generator().manual_seed(rng.randrange(2**32))
    logits = torch.randn(vocab_size, generator=generator) * rng.choice([0.0, 0.5, 2.0, 8.0])
    kind = rng.randrange(4)
    if kind == 1:
        logits = logits.round()
    if kind == 2:
        logits[rng.randrange(vocab_size)] += 15
    if kind == 3:
        logits[torch.rand(vocab_size, generator=generator) < 0.9] = -torch.inf
        logits[rng.randrange(vocab_size)] = 0.0
    return logits


def adjusted(logits: Tensor, params: SamplingParams) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Logits of a sample without prompt and output, in fp32 steps as the definition has them."""
    changed = logits.clone()
    for token, bias in params.logit_bias.items():
        changed[token] += bias
    if params.min_tokens > 0:
        changed[list(params.stop_token_ids)] = -torch.inf
    return changed.double().numpy()


@pytest.mark.parametrize("vocab_size", [50, 64, 200, 3000])
def test_every_draw_is_that_of_the_definition(vocab_size: int) -> None:
    rng = random.Random(vocab_size)
    for _ in range(30 if vocab_size == 3000 else 150):
        params = [random_params(rng) for _ in range(rng.choice([1, 2, 9, 40]))]
        logits = torch.stack([random_logits(rng, vocab_size) for _ in params])
        logits[:, 49] = 0.0  # one that is never banned
        sampler = sampler_of(vocab_size, (sample(i, p) for i, p in enumerate(params)))
        got = [drawn.token_id for drawn in sampler.draw(logits, range(len(params)))]
        for row, token_id in enumerate(got[:4]):
            noise = reference.variates(params[row].seed, 0, 0, vocab_size)
            want = reference.draw(adjusted(logits[row], params[row]), params[row], noise)
            assert token_id == want, (row, params[row])


def test_every_draw_of_a_large_vocabulary_is_that_of_the_definition() -> None:
    vocab_size, rng = 40_000, random.Random(5)
    logits = torch.stack([random_logits(rng, vocab_size) for _ in range(64)])
    logits[:, 49] = 0.0
    for output_index in range(3):
        noise = reference.variates(9, 0, output_index, vocab_size)
        forced = [1] * output_index
        params = [
            dataclasses.replace(random_params(rng), seed=9, repetition_penalty=1.0,
                                frequency_penalty=0.0, presence_penalty=0.0, min_tokens=0)
            for _ in logits
        ]  # fmt: skip
        samples = (sample(i, p, output_token_ids=forced) for i, p in enumerate(params))
        got = sampler_of(vocab_size, samples).draw(logits, range(64))
        for row, drawn in enumerate(got):
            want = reference.draw(adjusted(logits[row], params[row]), params[row], noise)
            assert drawn.token_id == want, (row, params[row])


def draws_by_definition(logits: Tensor, params: SamplingParams, count: int) -> set[int]:
    """The tokens of `count` seeds, each of which must be that of the definition."""
    sampler = sampler_of(
        len(logits), (sample(i, dataclasses.replace(params, seed=i)) for i in range(count))
    )
    got = [one.token_id for one in sampler.draw(logits.expand(count, -1), range(count))]
    row = logits.double().numpy()
    for seed, token_id in enumerate(got):
        noise = reference.variates(seed, 0, 0, len(logits))
        assert token_id == reference.draw(row, params, noise)
    return set(got)


def test_a_nucleus_ends_where_it_must() -> None:
    logits = torch.arange(40.0) / -20  # each token is of weight
    for top_p in (0.02, 0.11, 0.5, 0.77, 0.93):
        params = SamplingParams(max_tokens=1, top_p=top_p)
        drawn = draws_by_definition(logits, params, 3000)
        kept = reference.survivors(logits.double().numpy(), params)
        assert sorted(drawn) == np.flatnonzero(kept).tolist()


def test_a_large_top_k_keeps_exactly_k() -> None:
    logits = torch.randn(900, generator=torch.Generator().manual_seed(0))
    params = SamplingParams(max_tokens=1, temperature=1e6, top_k=600)
    sampler = sampler_of(900, (sample(i, params, sample_index=i) for i in range(500)))
    drawn = {
        one.token_id for _ in range(20) for one in sampler.draw(logits.expand(500, -1), range(500))
    }
    assert drawn == set(logits.topk(600).indices.tolist())


def test_equals_of_the_kth_are_all_kept_and_all_count() -> None:
    logits = torch.zeros(200)
    logits[100] = 2.0
    # The likeliest has 0.3 of the mass of itself and 17 others, 0.04 of that of all 200.
    params = SamplingParams(max_tokens=1, top_k=2, top_p=0.2)
    assert len(draws_by_definition(logits, params, 300)) > 100


def test_min_p_parts_neighbouring_numbers() -> None:
    for min_p in (0.3, 0.4, 0.5, 0.6, 0.7):
        nearest = torch.tensor(math.log(min_p))
        step = torch.tensor(math.inf)
        logits = torch.stack(
            (torch.tensor(0.0), torch.nextafter(nearest, -step), nearest,
             torch.nextafter(nearest, step))
        )  # fmt: skip
        drawn = draws_by_definition(logits, SamplingParams(max_tokens=1, min_p=min_p), 100)
        assert drawn == {0, 3} | ({2} if float(nearest) >= math.log(min_p) else set())


LIMITS = [
    {"top_k": 1}, {"top_k": 20}, {"top_k": 5000}, {"top_p": 0.0}, {"top_p": 0.3}, {"top_p": 0.95},
    {"min_p": 0.1}, {"min_p": 1.0}, {"top_k": 20, "top_p": 0.7}, {"top_k": 600, "top_p": 0.5},
    {"top_p": 0.9, "min_p": 0.05}, {"top_k": 50, "top_p": 0.9, "min_p": 0.02},
]  # fmt: skip


@pytest.mark.parametrize("limits", LIMITS, ids=str)
@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_definition_leaves_the_tokens_that_transformers_leaves(
    limits: dict[str, Any], temperature: float
) -> None:
    params = SamplingParams(max_tokens=1, temperature=temperature, **limits)
    warpers = LogitsProcessorList([TemperatureLogitsWarper(temperature)])
    if params.top_k:
        warpers.append(TopKLogitsWarper(params.top_k))
    if params.top_p < 1.0:
        warpers.append(TopPLogitsWarper(params.top_p))
    if params.min_p:
        warpers.append(MinPLogitsWarper(params.min_p))
    logits = torch.randn(20, 1000, generator=torch.Generator().manual_seed(3)) * 3
    left = warpers(NO_TOKENS.expand(20, 0), logits) > -torch.inf
    for row, kept in zip(logits.double().numpy(), left.tolist(), strict=True):
        assert reference.survivors(row, params).tolist() == kept


@pytest.mark.parametrize(
    "limits", [{}, {"top_k": 5}, {"top_p": 0.8}, {"top_p": 0.2}, {"min_p": 0.2}], ids=str
)
def test_draws_are_distributed_as_the_softmax(limits: dict[str, Any]) -> None:
    vocab_size, num_rows, num_steps = 150, 500, 20
    params = SamplingParams(max_tokens=1, temperature=0.8, **limits)
    logits = torch.randn(vocab_size, generator=torch.Generator().manual_seed(8)) * 2
    sampler = sampler_of(
        vocab_size,
        (sample(i, dataclasses.replace(params, seed=i // 2), sample_index=i % 2)
         for i in range(num_rows)),
    )  # fmt: skip
    counts = np.zeros(vocab_size)
    for _ in range(num_steps):
        for drawn in sampler.draw(logits.expand(num_rows, -1), range(num_rows)):
            counts[drawn.token_id] += 1
    row = logits.double().numpy()
    masses = np.where(reference.survivors(row, params), np.exp(row / 0.8), 0.0)
    expected = masses / masses.sum() * num_rows * num_steps
    assert counts[expected == 0].sum() == 0
    often = expected > 5
    cells = np.append(counts[often], counts[~often].sum())
    wanted = np.append(expected[often], expected[~often].sum())
    wanted[-1] = max(wanted[-1], 1e-9)
    freedom = len(cells) - 1
    statistic = ((cells - wanted) ** 2 / wanted).sum()
    assert abs(statistic - freedom) < 6 * math.sqrt(2 * freedom)


class Model:
    """Logits that are a function of a sample's tokens, as a real model's are."""

    def __init__(self, vocab_size: int) -> None:
        self.vocab_size = vocab_size

    def logits(self, tokens: Sequence[int]) -> Tensor:
        seed = hash(tuple(tokens)) % 2**32  # of integers: the same in every process
        generator = torch.Generator().manual_seed(seed)
        return torch.randn(self.vocab_size, generator=generator) * 2

    def run(self, samples: Sequence[NewSample], num_tokens: int) -> list[list[Drawn]]:
        """Each sample's draws until it has `num_tokens` of output, all in one batch."""
        sampler = sampler_of(self.vocab_size, samples)
        output = {new.handle: list(new.output_token_ids) for new in samples}
        drawn: dict[int, list[Drawn]] = {new.handle: [] for new in samples}
        while running := [s for s in samples if len(output[s.handle]) < num_tokens]:
            rows = [self.logits([*s.prompt_token_ids, *output[s.handle]]) for s in running]
            for one in sampler.draw(torch.stack(rows), [s.handle for s in running]):
                output[one.handle].append(one.token_id)
                drawn[one.handle].append(dataclasses.replace(one, handle=0))
        return [drawn[new.handle] for new in samples]


def random_samples(rng: random.Random, count: int, vocab_size: int) -> list[NewSample]:
    return [
        sample(
            handle,
            random_params(rng),
            sample_index=rng.randrange(3),
            prompt_token_ids=[rng.randrange(vocab_size) for _ in range(rng.randrange(1, 40))],
            eos_token_ids=(3, 5),
        )
        for handle in range(count)
    ]


@pytest.mark.parametrize("vocab_size", [300, 20_000])
def test_same_alone_in_a_batch_and_continued_from_any_prefix(vocab_size: int) -> None:
    rng, model, num_tokens = random.Random(11), Model(vocab_size), 8
    samples = random_samples(rng, 30, vocab_size)
    together = model.run(samples, num_tokens)
    for new, drawn in list(zip(samples, together, strict=True))[:: 1 if vocab_size == 300 else 5]:
        assert model.run([new], num_tokens) == [drawn]
        token_ids = [one.token_id for one in drawn]
        prefixes = [
            dataclasses.replace(new, handle=length, output_token_ids=token_ids[:length])
            for length in range(num_tokens)
        ]
        rng.shuffle(prefixes)
        for prefix, rest in zip(prefixes, model.run(prefixes, num_tokens), strict=True):
            assert rest == drawn[prefix.handle :]


def test_same_for_any_number_of_threads() -> None:
    samples, model = random_samples(random.Random(4), 40, 30_000), Model(30_000)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = model.run(samples, 2)
        torch.set_num_threads(3)
        three = model.run(samples, 2)
    finally:
        torch.set_num_threads(before)
    tokens = [[drawn.token_id for drawn in draws] for draws in one]
    assert tokens == [[drawn.token_id for drawn in draws] for draws in three]


def test_seed_sample_and_position_each_change_the_draw() -> None:
    logits = torch.zeros(1000)
    params = SamplingParams(max_tokens=9)
    drawn = [
        draw_one(logits, params),
        draw_one(logits, dataclasses.replace(params, seed=1)),
        draw_one(logits, params, sample_index=1),
        draw_one(logits, params, output_token_ids=(4,)),
    ]
    assert len({one.token_id for one in drawn}) == 4


def test_greedy_takes_the_lowest_of_equals_and_needs_no_seed() -> None:
    for first, second in [(0, 63), (63, 64), (5, 299), (128, 130)]:
        logits = torch.zeros(300)
        logits[[first, second]] = 2.5
        for seed in (0, 1):
            assert draw_one(logits, dataclasses.replace(GREEDY, seed=seed)).token_id == first


@pytest.mark.parametrize("temperature", [1e-300, 1e-40, 1e-6])
def test_hardly_any_temperature_is_greedy(temperature: float) -> None:
    logits = torch.randn(500, generator=torch.Generator().manual_seed(0))
    params = SamplingParams(max_tokens=1, temperature=temperature, top_p=0.9, min_p=0.01)
    assert draw_one(logits, params).token_id == int(logits.argmax())


def test_repetition_penalty_is_that_of_transformers() -> None:
    vocab_size = 80
    logits = torch.randn(vocab_size, generator=torch.Generator().manual_seed(2))
    processor = RepetitionPenaltyLogitsProcessor(1.7)
    params = dataclasses.replace(GREEDY, repetition_penalty=1.7, logprobs=0)
    prompt, output = [1, 1, 5, 70], list[int]()
    sampler = sampler_of(vocab_size, [sample(0, params, prompt_token_ids=prompt)])
    for _ in range(40):
        tokens: Any = torch.tensor([[*prompt, *output]])
        scores = processor(tokens, logits[None].clone())
        output += [drawn.token_id for drawn in sampler.draw(logits[None], [0])]
        assert output[-1] == int(scores.argmax())
    assert len(set(output)) > 5


def test_frequency_and_presence_count_the_output_only() -> None:
    params = dataclasses.replace(GREEDY, frequency_penalty=0.5, presence_penalty=0.25)
    prompt, output = [2, 2, 2], [0, 0, 1]

    def choice(logits: list[float]) -> int:
        drawn = draw_one(logits, params, prompt_token_ids=prompt, output_token_ids=output)
        return drawn.token_id

    # Tokens 0 and 1 lose 2 * 0.5 + 0.25 and 0.5 + 0.25; token 2, of the prompt, nothing.
    assert choice([1.3, 0.0, 0.04]) == 0
    assert choice([1.3, 0.0, 0.06]) == 2
    assert choice([1.3, 0.81, 0.04]) == 1
    assert choice([1.3, 0.79, 0.04]) == 0


def test_all_penalties_together_in_their_order() -> None:
    params = dataclasses.replace(
        GREEDY, logit_bias={0: 3.0}, repetition_penalty=2.0, frequency_penalty=0.5
    )
    # (1 + 3) / 2 - 0.5: the bias comes first, then the division, then the subtraction.
    assert draw_one([1.0, 1.49], params, output_token_ids=[0]).token_id == 0
    assert draw_one([1.0, 1.51], params, output_token_ids=[0]).token_id == 1
    # A negative logit is multiplied.
    negative = dataclasses.replace(GREEDY, repetition_penalty=2.0)
    assert draw_one([-1.0, -1.9], negative, prompt_token_ids=[0]).token_id == 1


def test_ends_are_kept_away_until_min_tokens() -> None:
    logits, given = [5.0, 4.0, 3.0], {"eos_token_ids": [0]}
    params = dataclasses.replace(GREEDY, min_tokens=2, stop_token_ids=(1,))
    assert draw_one(logits, params, output_token_ids=[2], **given).token_id == 2
    assert draw_one(logits, params, output_token_ids=[2, 2], **given).token_id == 0
    ignoring = dataclasses.replace(params, ignore_eos=True)
    assert draw_one(logits, ignoring, **given).token_id == 0
    assert draw_one([3.0, 4.0, 3.5], ignoring, **given).token_id == 2


def test_ids_outside_the_vocabulary_change_nothing() -> None:
    params = dataclasses.replace(
        GREEDY,
        logit_bias={-1: 9.0, 3: 9.0, 10**12: 9.0},
        repetition_penalty=1.5,
        stop_token_ids=(-2, 99),
        min_tokens=5,
    )
    drawn = draw_one(
        [1.0, 2.0, 3.0], params, prompt_token_ids=[3, -1], output_token_ids=[77], eos_token_ids=[3]
    )
    assert drawn.token_id == 2


def test_logprobs_are_of_the_raw_logits() -> None:
    vocab_size, rng = 700, random.Random(6)
    logits = torch.stack([random_logits(rng, vocab_size) for _ in range(40)])
    logits[:, 49] = 1.0
    logits[4, 100:] = -torch.inf
    params = [
        dataclasses.replace(random_params(rng), logprobs=[None, 0, 1, 20, 700][row % 5])
        for row in range(len(logits))
    ]
    sampler = sampler_of(vocab_size, (sample(i, p) for i, p in enumerate(params)))
    expected = logits.double().log_softmax(-1)
    for row, drawn in enumerate(sampler.draw(logits, range(40))):
        found, wanted = drawn.logprobs, params[row].logprobs
        if wanted is None:
            assert found is None
            continue
        assert found is not None
        assert found.token_id == drawn.token_id
        assert found.logprob == pytest.approx(float(expected[row, drawn.token_id]), abs=1e-5)
        assert found.rank == 1 + int((logits[row] > logits[row, drawn.token_id]).sum())
        possible = int((logits[row] > -torch.inf).sum())
        assert len(found.top) == min(wanted, possible)
        best = expected[row].sort(descending=True).values[: len(found.top)].tolist()
        assert [logprob for _, logprob in found.top] == pytest.approx(best, abs=1e-5)
        assert len({token for token, _ in found.top}) == len(found.top)
        for token, logprob in found.top:
            assert logprob == pytest.approx(float(expected[row, token]), abs=1e-5)
        assert list(found.top) == sorted(found.top, key=lambda pair: (-pair[1], pair[0]))


def test_prompt_logprobs() -> None:
    logits = torch.randn(70, 1000, generator=torch.Generator().manual_seed(1)) * 3
    targets = torch.randint(1000, (70,), generator=torch.Generator().manual_seed(2)).tolist()
    found = Sampler(1000, CPU).prompt_logprobs(logits, targets, top=2)
    expected = logits.double().log_softmax(-1)
    for row, target in enumerate(targets):
        assert found[row].token_id == target
        assert found[row].logprob == pytest.approx(float(expected[row, target]), abs=1e-5)
        assert found[row].rank == 1 + int((logits[row] > logits[row, target]).sum())
        assert [token for token, _ in found[row].top] == logits[row].topk(2).indices.tolist()
    assert [one.top for one in Sampler(1000, CPU).prompt_logprobs(logits, targets, 0)] == [()] * 70
    logits[3, 5] = torch.nan
    with pytest.raises(Internal, match=r"\[3\]"):
        Sampler(1000, CPU).prompt_logprobs(logits, targets, top=2)


def test_logits_are_left_as_they_were() -> None:
    rng = random.Random(8)
    samples = random_samples(rng, 30, 320)
    logits = torch.stack([random_logits(rng, 320) for _ in samples])
    logits[:, 49] = 0.0
    before = logits.clone()
    sampler_of(320, samples).draw(logits, range(30))
    assert torch.equal(logits, before)


@pytest.mark.parametrize("bad", ["nan", "inf", "all -inf"])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_bad_logits_name_their_samples_and_cost_the_others_nothing(
    bad: str, temperature: float
) -> None:
    rng = random.Random(9)
    samples = random_samples(rng, 12, 320)
    samples[5] = sample(5, SamplingParams(max_tokens=9, temperature=temperature, top_p=0.5))
    logits = torch.stack([random_logits(rng, 320) for _ in samples])
    logits[:, 49] = 0.0
    good = [handle for handle in range(12) if handle != 5]
    want = sampler_of(320, samples).draw(logits[good], good)
    if bad == "all -inf":
        logits[5] = -torch.inf
    else:
        logits[5, 200] = float(bad)
    sampler, before = sampler_of(320, samples), logits.clone()
    with pytest.raises(NonFiniteLogits, match=r"samples 5$") as caught:
        sampler.draw(logits, range(12))
    assert caught.value.handles == (5,)
    assert caught.value.code == "internal"
    assert torch.equal(logits, before) or bad == "nan"
    sampler.remove(5)
    assert sampler.draw(logits[good], good) == want


def test_impossible_tokens_are_never_drawn() -> None:
    logits = torch.full((1, 1000), -torch.inf)
    logits[0, 777] = -50.0
    for params in (GREEDY, SamplingParams(max_tokens=1, temperature=9.0, top_p=0.99, top_k=900)):
        assert draw_one(logits[0], params).token_id == 777


def test_wrong_calls_are_refused() -> None:
    sampler = sampler_of(10, [sample(1, GREEDY), sample(2, GREEDY)])
    rows = torch.zeros(2, 10)
    assert sampler.draw(rows[:0], []) == []
    with pytest.raises(Internal, match="twice"):
        sampler.draw(rows, [1, 1])
    with pytest.raises(Internal, match=r"\[3\]"):
        sampler.draw(rows, [1, 3])
    for wrong in (rows[:1], rows[:, :9], rows.double()):
        with pytest.raises(Internal, match="logits"):
            sampler.draw(wrong, [1, 2])
    with pytest.raises(Internal, match="1 is already"):
        sampler.add(sample(1, GREEDY))
    sampler.remove(1)
    with pytest.raises(Internal, match="1 is not"):
        sampler.remove(1)
    with pytest.raises(Internal, match=r"\[1\]"):
        sampler.draw(rows, [1, 2])
