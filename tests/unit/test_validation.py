"""Every wrong value is refused with its field and what is allowed; every right one is resolved."""

from __future__ import annotations

import math
from typing import Any

import pytest

from baton.errors import ContextLengthExceeded, InvalidArgument
from baton.types import SamplingParams
from router.request import Chat, GenerateInput, Message, Prompt, SamplingDefaults, SamplingInput
from router.validation import ModelLimits, check_request, resolve_sampling

LIMITS = ModelLimits(vocab_size=100, max_model_len=64)
NAN, INF = math.nan, math.inf


def refusal(request: GenerateInput, limits: ModelLimits = LIMITS) -> InvalidArgument:
    with pytest.raises(InvalidArgument) as caught:
        check_request(request, limits)
    return caught.value


def resolved(sampling: SamplingInput, *, num_prompt_tokens: int = 4) -> SamplingParams:
    request = GenerateInput(prompt=(1,) * num_prompt_tokens, sampling=sampling)
    check_request(request, LIMITS)
    return resolve_sampling(request, LIMITS, num_prompt_tokens=num_prompt_tokens, seed=9)


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("max_tokens", 0, "at least 1"),
        ("max_tokens", -1, "at least 1"),
        ("min_tokens", -1, "at least 0"),
        ("temperature", -0.1, "at least 0"),
        ("temperature", NAN, "at least 0"),
        ("temperature", INF, "finite"),
        ("temperature", 1.1e6, "at most 1e+06"),
        ("top_p", 0.0, "above 0 and at most 1"),
        ("top_p", 1.01, "above 0 and at most 1"),
        ("top_p", NAN, "finite"),
        ("top_k", -2, "at least -1 (0 or -1 is off)"),
        ("min_p", -0.01, "at least 0 and at most 1"),
        ("min_p", 1.5, "at least 0 and at most 1"),
        ("min_p", NAN, "finite"),
        ("repetition_penalty", 0.0, "at least 0.01"),
        ("repetition_penalty", 1e-40, "at least 0.01"),
        ("repetition_penalty", 101.0, "at most 100"),
        ("repetition_penalty", INF, "finite"),
        ("frequency_penalty", 2.1, "at least -2 and at most 2"),
        ("frequency_penalty", NAN, "finite"),
        ("presence_penalty", -2.1, "at least -2 and at most 2"),
        ("presence_penalty", -INF, "finite"),
        ("logprobs", -1, "from 0 to 20"),
        ("logprobs", 21, "from 0 to 20"),
        ("prompt_logprobs", 21, "from 0 to 20"),
        ("n", 0, "from 1 to 128"),
        ("n", 129, "from 1 to 128"),
        ("seed", -1, "from 0 to 18446744073709551615"),
        ("seed", 2**64, "from 0 to 18446744073709551615"),
        ("stop", ("x",) * 17, "at most 16"),
        ("stop_token_ids", (100,), "0 to 99"),
        ("stop_token_ids", (-1,), "0 to 99"),
        ("stop_token_ids", (1,) * 257, "at most 256"),
        ("logit_bias", {100: 1.0}, "0 to 99"),
        ("logit_bias", dict.fromkeys(range(1025), 0.0), "at most 1024"),
    ],
)
def test_a_value_out_of_range_is_refused_by_name(name: str, value: Any, allowed: str) -> None:
    error = refusal(GenerateInput(prompt=(1,), sampling=SamplingInput(**{name: value})))
    assert error.field == f"sampling.{name}"
    assert allowed in error.message


def test_any_top_k_above_0_is_answered() -> None:
    """One of the vocabulary's size or more keeps everything, however many bits it has."""
    got = [resolved(SamplingInput(top_k=k)).top_k for k in (1, 99, 100, 2**31, 2**80)]
    assert got == [1, 99, 0, 0, 0]


@pytest.mark.parametrize("bias", [NAN, INF, -101.0, 100.5])
def test_a_wrong_bias_is_refused_by_its_token(bias: float) -> None:
    error = refusal(GenerateInput(prompt=(1,), sampling=SamplingInput(logit_bias={7: bias})))
    assert error.field == "sampling.logit_bias[7]"


@pytest.mark.parametrize("stop", ["", "x" * 257])
def test_a_wrong_stop_string_is_refused_by_its_index(stop: str) -> None:
    error = refusal(GenerateInput(prompt=(1,), sampling=SamplingInput(stop=("ok", stop))))
    assert error.field == "sampling.stop[1]"
    assert f"has {len(stop)}" in error.message


@pytest.mark.parametrize(
    ("prompt", "field", "message"),
    [
        (None, "prompt", "is needed"),
        ("", "text", "must not be empty"),
        ((), "token_ids", "at least one"),
        (Chat(()), "chat.messages", "at least one message"),
        (Chat((Message("user", "x"), Message("", "y"))), "chat.messages[1].role", "empty"),
        ((1, 2, 100), "token_ids", "token id 100 at index 2"),
        ((1, -3), "token_ids", "token id -3 at index 1"),
        ((1,) * 64, "token_ids", "64 tokens; the model's context of 64 allows at most 63"),
    ],
)
def test_a_wrong_prompt_is_refused(prompt: Prompt, field: str, message: str) -> None:
    error = refusal(GenerateInput(prompt=prompt))
    assert error.field == field
    assert message in error.message


def test_prompt_logprobs_are_bounded_by_what_one_message_holds() -> None:
    limits = ModelLimits(vocab_size=100, max_model_len=2**20)
    for k, most in ((0, 2**19), (20, 47_662)):
        request = GenerateInput(prompt="x", sampling=SamplingInput(prompt_logprobs=k))
        resolve_sampling(request, limits, num_prompt_tokens=most, seed=1)
        with pytest.raises(InvalidArgument, match=f"at most {most} tokens") as refused:
            resolve_sampling(request, limits, num_prompt_tokens=most + 1, seed=1)
        assert refused.value.field == "sampling.prompt_logprobs"


def test_a_model_without_tokenizer_takes_token_ids_only() -> None:
    limits = ModelLimits(vocab_size=100, max_model_len=64, has_text=False)
    assert refusal(GenerateInput(prompt="hi"), limits).field == "text"
    assert refusal(GenerateInput(prompt=Chat((Message("user", "x"),))), limits).field == (
        "chat.messages"
    )
    stops = GenerateInput(prompt=(1,), sampling=SamplingInput(stop=("x",)))
    assert refusal(stops, limits).field == "sampling.stop"
    check_request(GenerateInput(prompt=(1,)), limits)


@pytest.mark.parametrize(
    ("output", "sampling", "field"),
    [
        (((1,), (2,)), SamplingInput(n=3), "output_token_ids"),
        (((1,), (2,)), SamplingInput(), "output_token_ids"),
        (((1,), (100,)), SamplingInput(n=2), "output_token_ids[1]"),
        (((1,),), SamplingInput(prompt_logprobs=0), "sampling.prompt_logprobs"),
    ],
)
def test_a_contradictory_continuation_is_refused(
    output: tuple[tuple[int, ...], ...], sampling: SamplingInput, field: str
) -> None:
    request = GenerateInput(prompt=(1,), sampling=sampling, output_token_ids=output)
    assert refusal(request).field == field


def test_a_continuation_longer_than_max_tokens_is_refused_and_an_equal_one_is_not() -> None:
    for num_tokens in (3, 4):
        request = GenerateInput(
            prompt=(1,),
            sampling=SamplingInput(n=2, max_tokens=3),
            output_token_ids=((1,), (2,) * num_tokens),
        )
        check_request(request, LIMITS)
        if num_tokens == 3:
            assert resolve_sampling(request, LIMITS, num_prompt_tokens=1, seed=0).max_tokens == 3
            continue
        with pytest.raises(InvalidArgument, match="has 4 tokens already") as caught:
            resolve_sampling(request, LIMITS, num_prompt_tokens=1, seed=0)
        assert caught.value.field == "output_token_ids[1]"


def test_unset_values_come_from_the_model_then_are_neutral() -> None:
    defaults = SamplingDefaults(temperature=0.6, top_k=20, top_p=0.95)
    limits = ModelLimits(vocab_size=100, max_model_len=64, defaults=defaults)
    request = GenerateInput(prompt=(1,), sampling=SamplingInput(top_p=0.5, seed=0))
    params = resolve_sampling(request, limits, num_prompt_tokens=4, seed=9)
    assert params == SamplingParams(
        max_tokens=60, temperature=0.6, top_k=20, top_p=0.5, repetition_penalty=1.0, seed=0
    )


def test_edges_of_the_ranges_are_served() -> None:
    sampling = SamplingInput(
        max_tokens=60,
        min_tokens=60,
        temperature=0.0,
        top_k=-1,
        top_p=1.0,
        min_p=1.0,
        frequency_penalty=-2.0,
        presence_penalty=2.0,
        logit_bias={0: -100.0, 99: 100.0},
        stop=("x" * 256,) * 16,
        ignore_eos=True,
        logprobs=20,
        n=128,
    )
    params = resolved(sampling)
    assert (params.top_k, params.n, params.seed) == (0, 128, 9)
    assert params.logit_bias == {0: -100.0, 99: 100.0}


@pytest.mark.parametrize(
    ("request_id", "tenant", "field"),
    [
        ("a\nERROR forged", "", "request_id"),
        ("a/7", "", "request_id"),
        ("x" * 129, "", "request_id"),
        ("", "acme\r\nERROR forged", "tenant"),
        ("", "\x1b[2K", "tenant"),
        ("", "x" * 129, "tenant"),
    ],
)
def test_names_that_would_forge_what_they_are_written_into(
    request_id: str, tenant: str, field: str
) -> None:
    assert refusal(GenerateInput((1,), request_id=request_id, tenant=tenant)).field == field
    check_request(GenerateInput(prompt=(1,), request_id="a.7:b_c-d", tenant="Ärzte & Co"), LIMITS)


def test_max_tokens_must_fit_into_what_the_prompt_leaves() -> None:
    assert resolved(SamplingInput(max_tokens=60)).max_tokens == 60
    with pytest.raises(
        ContextLengthExceeded, match=r"is 61.*4 tokens leave 60.*context of 64"
    ) as caught:
        resolved(SamplingInput(max_tokens=61))
    assert caught.value.field == "sampling.max_tokens"


def test_the_prompt_must_leave_room_for_one_token() -> None:
    assert resolved(SamplingInput(), num_prompt_tokens=63).max_tokens == 1
    request = GenerateInput(prompt="long")
    with pytest.raises(ContextLengthExceeded, match=r"64 tokens.*at most 63") as caught:
        resolve_sampling(request, LIMITS, num_prompt_tokens=64, seed=0)
    assert caught.value.field == "text"


def test_min_tokens_above_max_tokens_is_refused() -> None:
    with pytest.raises(InvalidArgument, match=r"at most max_tokens \(5\), is 6") as caught:
        resolved(SamplingInput(max_tokens=5, min_tokens=6))
    assert caught.value.field == "sampling.min_tokens"
