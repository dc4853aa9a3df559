"""The one place between protobuf messages and the frozen values of baton.types and baton.errors.

`x_to_proto` and `x_from_proto` are inverse to each other. What a peer may get wrong is checked here
and answered with `InvalidArgument`; what values mean is not known here. The columns of StepOutputs
are built and read where the steps are, since they are the hot path.
"""

from __future__ import annotations

from collections.abc import Iterable

from baton import errors
from baton.prefill_cost import PrefillCost
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
from baton.v1 import common_pb2, decode_pb2

# Fields of a resolved SamplingParams message that must be set although the message lets them be
# unset.
_RESOLVED = (
    "max_tokens",
    "temperature",
    "top_k",
    "top_p",
    "repetition_penalty",
    "seed",
    "n",
)


def sampling_to_proto(params: SamplingParams) -> common_pb2.SamplingParams:
    return common_pb2.SamplingParams(
        max_tokens=params.max_tokens,
        min_tokens=params.min_tokens,
        temperature=params.temperature,
        top_k=params.top_k,
        top_p=params.top_p,
        min_p=params.min_p,
        repetition_penalty=params.repetition_penalty,
        frequency_penalty=params.frequency_penalty,
        presence_penalty=params.presence_penalty,
        seed=params.seed,
        logit_bias=params.logit_bias,
        stop=params.stop,
        stop_token_ids=params.stop_token_ids,
        ignore_eos=params.ignore_eos,
        logprobs=params.logprobs,
        prompt_logprobs=params.prompt_logprobs,
        n=params.n,
    )


def sampling_from_proto(message: common_pb2.SamplingParams) -> SamplingParams:
    """Of a resolved message, as routers send it to workers; `InvalidArgument` where one field is
    unset."""
    for name in _RESOLVED:
        if not message.HasField(name):  # type: ignore[arg-type]
            raise errors.InvalidArgument("must be set", field=f"sampling.{name}")
    return SamplingParams(
        max_tokens=message.max_tokens,
        min_tokens=message.min_tokens,
        temperature=message.temperature,
        top_k=message.top_k,
        top_p=message.top_p,
        min_p=message.min_p,
        repetition_penalty=message.repetition_penalty,
        frequency_penalty=message.frequency_penalty,
        presence_penalty=message.presence_penalty,
        seed=message.seed,
        logit_bias=dict(message.logit_bias),
        stop=tuple(message.stop),
        stop_token_ids=tuple(message.stop_token_ids),
        ignore_eos=message.ignore_eos,
        logprobs=message.logprobs if message.HasField("logprobs") else None,
        prompt_logprobs=message.prompt_logprobs if message.HasField("prompt_logprobs") else None,
        n=message.n,
    )


def token_ids_to_proto(samples: Iterable[Iterable[int]]) -> list[common_pb2.TokenIds]:
    """Token ids per sample, as `output_token_ids` carries them."""
    return [common_pb2.TokenIds(ids=ids) for ids in samples]


def finish_reason_from_proto(reason: common_pb2.FinishReason.ValueType) -> FinishReason | None:
    """None: the sample goes on."""
    return FinishReason(reason) if reason else None


def finish_reason_to_proto(reason: FinishReason | None) -> common_pb2.FinishReason.ValueType:
    return common_pb2.FinishReason.ValueType(reason or 0)


def logprobs_to_proto(position: PositionLogprobs) -> common_pb2.PositionLogprobs:
    return common_pb2.PositionLogprobs(
        chosen=common_pb2.TokenLogprob(token_id=position.token_id, logprob=position.logprob),
        rank=position.rank,
        top=[
            common_pb2.TokenLogprob(token_id=token, logprob=value) for token, value in position.top
        ],
    )


def logprobs_from_proto(message: common_pb2.PositionLogprobs) -> PositionLogprobs:
    return PositionLogprobs(
        token_id=message.chosen.token_id,
        logprob=message.chosen.logprob,
        rank=message.rank,
        top=tuple((entry.token_id, entry.logprob) for entry in message.top),
    )


def usage_to_proto(usage: Usage) -> common_pb2.Usage:
    return common_pb2.Usage(
        num_prompt_tokens=usage.num_prompt_tokens,
        num_cached_tokens=usage.num_cached_tokens,
        num_output_tokens=usage.num_output_tokens,
    )


def usage_from_proto(message: common_pb2.Usage) -> Usage:
    return Usage(
        num_prompt_tokens=message.num_prompt_tokens,
        num_cached_tokens=message.num_cached_tokens,
        num_output_tokens=message.num_output_tokens,
    )


def timeline_to_proto(timeline: Timeline) -> common_pb2.Timeline:
    message = common_pb2.Timeline(
        events=[
            common_pb2.TimelineEvent(instant=instant, offset_s=offset_s)
            for instant, offset_s in timeline.events.items()
        ],
        decode_worker=timeline.decode_worker,
        prefill_worker=timeline.prefill_worker,
        num_cached_tokens=timeline.num_cached_tokens,
        num_computed_tokens=timeline.num_computed_tokens,
        num_attempts=timeline.num_attempts,
        num_preemptions=timeline.num_preemptions,
        predicted_local_ttft_s=timeline.predicted_local_ttft_s,
        predicted_remote_ttft_s=timeline.predicted_remote_ttft_s,
    )
    if timeline.hand_off is not None:
        message.transfer_bytes = timeline.hand_off.transfer_bytes
        message.transfer_s = timeline.hand_off.transfer_s
        message.transfer_exposed_s = timeline.hand_off.transfer_exposed_s
        message.num_prefill_cached_tokens = timeline.hand_off.num_prefill_cached_tokens
        message.num_resent_blocks = timeline.hand_off.num_resent_blocks
        message.num_lent_tokens = timeline.hand_off.num_lent_tokens
        message.transport = timeline.hand_off.transport
    return message


def timeline_from_proto(message: common_pb2.Timeline) -> Timeline:
    """A timeline has a hand-off where, and only where, it names a prefill worker."""
    hand_off = HandOffReport(
        prefill_worker=message.prefill_worker,
        transfer_bytes=message.transfer_bytes,
        transfer_s=message.transfer_s,
        transfer_exposed_s=message.transfer_exposed_s,
        num_prefill_cached_tokens=message.num_prefill_cached_tokens,
        num_resent_blocks=message.num_resent_blocks,
        num_lent_tokens=message.num_lent_tokens,
        transport=message.transport,
    )
    local_s, remote_s = message.predicted_local_ttft_s, message.predicted_remote_ttft_s
    return Timeline(
        events={event.instant: event.offset_s for event in message.events},
        decode_worker=message.decode_worker,
        prefill_worker=message.prefill_worker,
        num_cached_tokens=message.num_cached_tokens,
        num_computed_tokens=message.num_computed_tokens,
        num_attempts=message.num_attempts,
        num_preemptions=message.num_preemptions,
        predicted_local_ttft_s=local_s if message.HasField("predicted_local_ttft_s") else None,
        predicted_remote_ttft_s=remote_s if message.HasField("predicted_remote_ttft_s") else None,
        hand_off=hand_off if message.prefill_worker else None,
    )


def hand_off_to_proto(report: HandOffReport) -> decode_pb2.HandOffReport:
    return decode_pb2.HandOffReport(
        prefill_worker=report.prefill_worker,
        transfer_bytes=report.transfer_bytes,
        transfer_s=report.transfer_s,
        transfer_exposed_s=report.transfer_exposed_s,
        num_prefill_cached_tokens=report.num_prefill_cached_tokens,
        num_resent_blocks=report.num_resent_blocks,
        num_lent_tokens=report.num_lent_tokens,
        transport=report.transport,
        num_blocks=report.num_blocks,
    )


def hand_off_from_proto(message: decode_pb2.HandOffReport) -> HandOffReport:
    return HandOffReport(
        prefill_worker=message.prefill_worker,
        transfer_bytes=message.transfer_bytes,
        transfer_s=message.transfer_s,
        transfer_exposed_s=message.transfer_exposed_s,
        num_prefill_cached_tokens=message.num_prefill_cached_tokens,
        num_resent_blocks=message.num_resent_blocks,
        num_lent_tokens=message.num_lent_tokens,
        transport=message.transport,
        num_blocks=message.num_blocks,
    )


def pool_to_proto(pool: PoolId) -> common_pb2.Pool:
    return common_pb2.Pool(worker_id=pool.worker_id, dp_rank=pool.dp_rank)


def pool_from_proto(message: common_pb2.Pool) -> PoolId:
    return PoolId(worker_id=message.worker_id, dp_rank=message.dp_rank)


def prefill_choice_to_proto(choice: PrefillChoice) -> decode_pb2.PrefillChoice:
    return decode_pb2.PrefillChoice(
        pool=pool_to_proto(choice.pool),
        incarnation=choice.incarnation,
        address=choice.address,
        lend=choice.lend,
    )


def prefill_choice_from_proto(message: decode_pb2.PrefillChoice) -> PrefillChoice:
    return PrefillChoice(
        pool=pool_from_proto(message.pool),
        incarnation=message.incarnation,
        address=message.address,
        lend=message.lend,
    )


def pool_load_to_proto(load: PoolLoad) -> common_pb2.PoolLoad:
    return common_pb2.PoolLoad(
        pool=pool_to_proto(load.pool),
        incarnation=load.incarnation,
        num_running_requests=load.num_running_requests,
        num_waiting_requests=load.num_waiting_requests,
        num_waiting_tokens=load.num_waiting_tokens,
        num_total_blocks=load.num_total_blocks,
        num_free_blocks=load.num_free_blocks,
        num_held_blocks=load.num_held_blocks,
        num_cached_blocks=load.num_cached_blocks,
        num_quarantined_blocks=load.num_quarantined_blocks,
        prefill_tokens_per_s=load.prefill_tokens_per_s,
        decode_step_s=load.decode_step_s,
        prefill_cost=_prefill_cost_to_proto(load.prefill_cost) if load.prefill_cost else None,
        decode_stream_s=load.decode_stream_s,
    )


def pool_load_from_proto(message: common_pb2.PoolLoad) -> PoolLoad:
    return PoolLoad(
        pool=pool_from_proto(message.pool),
        incarnation=message.incarnation,
        num_running_requests=message.num_running_requests,
        num_waiting_requests=message.num_waiting_requests,
        num_waiting_tokens=message.num_waiting_tokens,
        num_total_blocks=message.num_total_blocks,
        num_free_blocks=message.num_free_blocks,
        num_held_blocks=message.num_held_blocks,
        num_cached_blocks=message.num_cached_blocks,
        num_quarantined_blocks=message.num_quarantined_blocks,
        prefill_tokens_per_s=message.prefill_tokens_per_s,
        decode_step_s=message.decode_step_s,
        prefill_cost=_prefill_cost_from_proto(message.prefill_cost)
        if message.HasField("prefill_cost")
        else None,
        decode_stream_s=message.decode_stream_s,
    )


def _prefill_cost_to_proto(cost: PrefillCost) -> common_pb2.PrefillCost:
    return common_pb2.PrefillCost(
        quadratic_s=cost.quadratic_s,
        linear_s=cost.linear_s,
        fixed_s=cost.fixed_s,
        step_tokens=cost.step_tokens,
    )


def _prefill_cost_from_proto(message: common_pb2.PrefillCost) -> PrefillCost:
    step_tokens = max(1, message.step_tokens)
    return PrefillCost(message.quadratic_s, message.linear_s, message.fixed_s, step_tokens)


def fingerprint_to_proto(fingerprint: Fingerprint) -> common_pb2.Fingerprint:
    return common_pb2.Fingerprint(
        identity=fingerprint.identity,
        block_size=fingerprint.block_size,
        tensor_parallel_size=fingerprint.tensor_parallel_size,
        kv_dtype=fingerprint.kv_dtype,
        num_layers=fingerprint.num_layers,
        num_kv_heads=fingerprint.num_kv_heads,
        head_dim=fingerprint.head_dim,
    )


def fingerprint_from_proto(message: common_pb2.Fingerprint) -> Fingerprint:
    return Fingerprint(
        identity=message.identity,
        block_size=message.block_size,
        tensor_parallel_size=message.tensor_parallel_size,
        kv_dtype=message.kv_dtype,
        num_layers=message.num_layers,
        num_kv_heads=message.num_kv_heads,
        head_dim=message.head_dim,
    )


def worker_info_to_proto(info: WorkerInfo) -> common_pb2.WorkerInfo:
    return common_pb2.WorkerInfo(
        worker_id=info.worker_id,
        incarnation=info.incarnation,
        role=common_pb2.Role.ValueType(info.role),
        address=info.address,
        model=info.model,
        fingerprint=fingerprint_to_proto(info.fingerprint),
        max_model_len=info.max_model_len,
        vocab_size=info.vocab_size,
        num_dp_ranks=info.num_dp_ranks,
        num_total_blocks=info.num_total_blocks,
        package_version=info.package_version,
        transports=info.transports,
        host_id=info.host_id,
        pid=info.pid,
    )


def worker_info_from_proto(message: common_pb2.WorkerInfo) -> WorkerInfo:
    """`InvalidArgument` where the role is none that this version knows, or a name is missing."""
    for name in ("worker_id", "address"):
        if not getattr(message, name):
            raise errors.InvalidArgument("must not be empty", field=f"info.{name}")
    try:
        role = Role(message.role)
    except ValueError:
        raise errors.InvalidArgument(f"{message.role} is no role", field="info.role") from None
    return WorkerInfo(
        worker_id=message.worker_id,
        incarnation=message.incarnation,
        role=role,
        address=message.address,
        model=message.model,
        fingerprint=fingerprint_from_proto(message.fingerprint),
        max_model_len=message.max_model_len,
        vocab_size=message.vocab_size,
        num_dp_ranks=message.num_dp_ranks,
        num_total_blocks=message.num_total_blocks,
        package_version=message.package_version,
        transports=tuple(message.transports),
        host_id=message.host_id,
        pid=message.pid,
    )


# Bytes of an error's texts on the wire. They travel twice in the trailing metadata, once
# percent-encoded (three times as long at worst), and gRPC allows 8 KiB there.
_MAX_MESSAGE_BYTES = 1024
_MAX_FIELD_BYTES = 128


def error_to_proto(error: errors.BatonError) -> common_pb2.Error:
    """Text that no peer could carry is made so: shortened, and lone surrogates escaped."""
    return common_pb2.Error(
        code=error.code,
        message=_portable(error.message, _MAX_MESSAGE_BYTES),
        field=_portable(error.field, _MAX_FIELD_BYTES),
        retry_after_s=error.retry_after_s,
    )


def error_from_proto(message: common_pb2.Error) -> errors.BatonError:
    return errors.from_code(
        message.code,
        message.message,
        field=message.field,
        retry_after_s=message.retry_after_s,
    )


def _portable(text: str, max_bytes: int) -> str:
    encoded = text.encode("utf-8", "backslashreplace")
    if len(encoded) <= max_bytes:
        return encoded.decode()
    return encoded[: max_bytes - 3].decode("utf-8", "ignore") + "…"
