"""baton.v1.Prefill as a decode worker speaks it: the role's orders, messages out; messages in, events."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from baton import convert
from baton.v1 import prefill_pb2
from decode_worker.messages import AskPrefill, FirstToken, FirstTokens, PrefillAccount
from decode_worker.transfer import Transfer


def named(transfer: Transfer) -> dict[str, Any]:
    return {"request_id": transfer.ask.request_id, "attempt": transfer.ask.transfer}


def start(order: AskPrefill, lends: str, now_s: float) -> prefill_pb2.PrefillCommand:
    return prefill_pb2.PrefillCommand(
        start=prefill_pb2.PrefillStart(
            request_id=order.request_id,
            attempt=order.transfer,
            token_ids=order.token_ids,
            num_prompt_tokens=order.num_prompt_tokens,
            sample_index=order.first_sample_index,
            sampling=convert.sampling_to_proto(order.params),
            salt=order.salt,
            priority=order.priority,
            timeout_s=max(1e-3, order.deadline_s - now_s) if order.deadline_s is not None else 0.0,
            first_block=order.first_block,
            destination_blocks=order.destination_blocks,
            sample=True,
            pool=convert.pool_to_proto(order.prefill.pool),
            incarnation=order.prefill.incarnation,
            eos_token_ids=order.eos_token_ids,
            lends=lends,
            suspected=order.suspected,
        )
    )


def cancel(transfer: Transfer) -> prefill_pb2.PrefillCommand:
    return prefill_pb2.PrefillCommand(cancel=prefill_pb2.PrefillCancel(**named(transfer)))


def confirm(transfer: Transfer) -> prefill_pb2.PrefillCommand:
    return prefill_pb2.PrefillCommand(confirm=prefill_pb2.PrefillConfirm(**named(transfer)))


def lent(ask: AskPrefill, checksums: Sequence[int]) -> prefill_pb2.PrefillCommand:
    lent = prefill_pb2.PrefixLent(
        request_id=ask.request_id, attempt=ask.transfer, checksums=checksums
    )
    return prefill_pb2.PrefillCommand(lent=lent)


def not_lent(request_id: str, attempt: int) -> prefill_pb2.PrefillCommand:
    not_lent = prefill_pb2.PrefixNotLent(request_id=request_id, attempt=attempt)
    return prefill_pb2.PrefillCommand(not_lent=not_lent)


def resend(transfer: Transfer, blocks: tuple[int, ...]) -> prefill_pb2.PrefillCommand:
    again = prefill_pb2.PrefillResend(**named(transfer), logical_blocks=blocks)
    return prefill_pb2.PrefillCommand(resend=again)


def first_tokens(message: prefill_pb2.FirstTokens, account: PrefillAccount) -> FirstTokens:
    return FirstTokens(
        message.attempt,
        [
            FirstToken(
                token.sample_index,
                token.token_id,
                convert.logprobs_from_proto(token.logprobs) if token.HasField("logprobs") else None,
            )
            for token in message.tokens
        ],
        [convert.logprobs_from_proto(position) for position in message.prompt_logprobs],
        account,
    )
