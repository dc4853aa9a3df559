"""Round trips between frozen values and messages, over the wire's own bytes."""

from __future__ import annotations

from dataclasses import fields
from typing import Any, TypeVar

import pytest
from google.protobuf.message import Message
from hypothesis import given
from hypothesis import strategies as st

from baton import convert, errors
from baton.types import (
    Fingerprint,
    FinishReason,
    HandOffReport,
    PoolId,
    PoolLoad,
    PositionLogprobs,
    PrefillChoice,
    Role,
    SamplingParams,
    Timeline,
    Usage,
    WorkerInfo,
)
from baton.v1 import common_pb2

Wire = TypeVar("Wire", bound=Message)

uint32 = st.integers(0, 2**32 - 1)
uint64 = st.integers(0, 2**64 - 1)
int32 = st.integers(-(2**31), 2**31 - 1)
double = st.floats(allow_nan=False)
single = st.floats(allow_nan=False, width=32)
characters = st.characters(codec="utf-8")
text = st.text(characters, max_size=8)
name = st.text(characters, min_size=1, max_size=8)
tokens = st.tuples(uint32, single)

sampling = st.builds(
    SamplingParams,
    max_tokens=int32,
    min_tokens=int32,
    temperature=double,
    top_k=int32,
    top_p=double,
    min_p=double,
    repetition_penalty=double,
    frequency_penalty=double,
    presence_penalty=double,
    seed=uint64,
    logit_bias=st.dictionaries(uint32, double, max_size=3),
    stop=st.lists(text, max_size=3).map(tuple),
    stop_token_ids=st.lists(uint32, max_size=3).map(tuple),
    ignore_eos=st.booleans(),
    logprobs=st.none() | int32,
    prompt_logprobs=st.none() | int32,
    n=int32,
)
logprobs = st.builds(
    PositionLogprobs, uint32, single, uint32, st.lists(tokens, max_size=3).map(tuple)
)
pools = st.builds(PoolId, name, uint32)
loads = st.builds(PoolLoad, pools, uint64, uint32, uint32, uint64, *[uint32] * 5, double, double)
fingerprints = st.builds(Fingerprint, text, uint32, uint32, text, uint32, uint32, uint32)
infos = st.builds(
    WorkerInfo,
    worker_id=name,
    incarnation=uint64,
    role=st.sampled_from(Role),
    address=name,
    model=text,
    fingerprint=fingerprints,
    max_model_len=uint32,
    vocab_size=uint32,
    num_dp_ranks=uint32,
    num_total_blocks=uint32,
    package_version=text,
    transports=st.lists(text, max_size=3).map(tuple),
    host_id=text,
    pid=st.integers(-(2**63), 2**63 - 1),
)
hand_offs = st.builds(HandOffReport, name, uint64, double, double, uint32)


@st.composite
def timelines(draw: st.DrawFn) -> Timeline:
    """A timeline names a prefill worker where, and only where, it has a hand-off."""
    hand_off = draw(st.none() | hand_offs)
    return Timeline(
        events=draw(st.dictionaries(text, double, max_size=3)),
        decode_worker=draw(text),
        prefill_worker=hand_off.prefill_worker if hand_off else "",
        num_cached_tokens=draw(uint32),
        num_computed_tokens=draw(uint32),
        num_attempts=draw(uint32),
        num_preemptions=draw(uint32),
        predicted_local_ttft_s=draw(st.none() | double),
        predicted_remote_ttft_s=draw(st.none() | double),
        hand_off=hand_off,
    )


def carried(message: Wire) -> Wire:
    return type(message).FromString(message.SerializeToString())


ROUND_TRIPS: list[tuple[st.SearchStrategy[Any], Any, Any]] = [
    (sampling, convert.sampling_to_proto, convert.sampling_from_proto),
    (logprobs, convert.logprobs_to_proto, convert.logprobs_from_proto),
    (st.builds(Usage, *[uint32] * 3), convert.usage_to_proto, convert.usage_from_proto),
    (timelines(), convert.timeline_to_proto, convert.timeline_from_proto),
    (hand_offs, convert.hand_off_to_proto, convert.hand_off_from_proto),
    (pools, convert.pool_to_proto, convert.pool_from_proto),
    (loads, convert.pool_load_to_proto, convert.pool_load_from_proto),
    (fingerprints, convert.fingerprint_to_proto, convert.fingerprint_from_proto),
    (infos, convert.worker_info_to_proto, convert.worker_info_from_proto),
    (
        st.builds(PrefillChoice, pools, uint64, text),
        convert.prefill_choice_to_proto,
        convert.prefill_choice_from_proto,
    ),
]


@pytest.mark.parametrize(
    ("values", "to_proto", "from_proto"),
    ROUND_TRIPS,
    ids=lambda case: getattr(case, "__name__", ""),
)
@given(data=st.data())
def test_round_trip(
    values: st.SearchStrategy[Any], to_proto: Any, from_proto: Any, data: st.DataObject
) -> None:
    value = data.draw(values)
    assert from_proto(carried(to_proto(value))) == value


def test_order_of_a_timeline_is_kept() -> None:
    events = {"received": 0.0, "first_token": 0.2, "decode_start": 0.1, "finished": 0.3}
    timeline = Timeline(events, "d0", "", 0, 0, 1, 0)
    assert list(convert.timeline_from_proto(convert.timeline_to_proto(timeline)).events) == list(
        events
    )


def test_every_sampling_field_is_on_the_wire() -> None:
    message = {field.name for field in common_pb2.SamplingParams.DESCRIPTOR.fields}
    assert message == {field.name for field in fields(SamplingParams)}


@pytest.mark.parametrize("unset", ["max_tokens", "temperature", "top_k", "top_p", "seed", "n"])
def test_unresolved_sampling_is_refused_by_name(unset: str) -> None:
    message = convert.sampling_to_proto(SamplingParams(max_tokens=1))
    message.ClearField(unset)  # type: ignore[arg-type]
    with pytest.raises(errors.InvalidArgument) as refused:
        convert.sampling_from_proto(message)
    assert refused.value.field == f"sampling.{unset}"


@pytest.mark.parametrize("reason", [None, *FinishReason])
def test_finish_reasons(reason: FinishReason | None) -> None:
    assert convert.finish_reason_from_proto(convert.finish_reason_to_proto(reason)) is reason


def test_numbers_of_enums_are_those_of_the_wire() -> None:
    on_wire = {
        name.removeprefix("FINISH_REASON_"): n for name, n in common_pb2.FinishReason.items()
    }
    assert on_wire == {"UNSPECIFIED": 0, **{reason.name: reason for reason in FinishReason}}
    roles = {name.removeprefix("ROLE_"): number for name, number in common_pb2.Role.items()}
    assert roles == {"UNSPECIFIED": 0, **{role.name: role for role in Role}}


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"worker_id": ""}, "info.worker_id"),
        ({"address": ""}, "info.address"),
        ({"role": 0}, "info.role"),
        ({"role": 99}, "info.role"),
    ],
)
def test_bad_worker_info_is_refused_by_name(change: dict[str, Any], field: str) -> None:
    good: dict[str, Any] = {"worker_id": "w", "address": "h:1", "role": 1}
    with pytest.raises(errors.InvalidArgument) as refused:
        convert.worker_info_from_proto(common_pb2.WorkerInfo(**good | change))
    assert refused.value.field == field


@pytest.mark.parametrize("kind", errors.STATUS)
def test_errors_keep_their_kind(kind: type[errors.BatonError]) -> None:
    error = kind("why", field="a.b", retry_after_s=0.5)
    back = convert.error_from_proto(carried(convert.error_to_proto(error)))
    assert type(back) is (errors.Internal if kind is errors.BatonError else kind)
    assert (back.message, back.field, back.retry_after_s) == ("why", "a.b", 0.5)


def test_error_of_a_newer_version_is_internal() -> None:
    back = convert.error_from_proto(common_pb2.Error(code="melted", message="why"))
    assert type(back) is errors.Internal
    assert back.message == "why"


@given(message=st.text(max_size=3000), field=st.text(max_size=400))
def test_every_error_fits_the_metadata(message: str, field: str) -> None:
    wire = convert.error_to_proto(errors.InvalidArgument(message, field=field))
    # gRPC allows 8 KiB of metadata: base64 of the message, and the details percent-encoded.
    details = f"{wire.field}: {wire.message}".encode()
    assert len(wire.SerializeToString()) * 4 / 3 + 3 * len(details) < 7_000
    if len(message.encode("utf-8", "backslashreplace")) <= 1024:
        assert wire.message == message.encode("utf-8", "backslashreplace").decode()
    else:
        assert wire.message.endswith("…")
