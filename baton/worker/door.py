"""What a worker looks at before it takes a request, whatever its role. Pure.

Routers have checked the same; but a value that reaches a step is shared by everybody in it, so a worker
trusts nobody's check but its own.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from baton.block_id import MAX_SALT_BYTES
from baton.errors import BatonError, InvalidArgument
from baton.sampling_ranges import check_sampling, check_token_ids
from baton.types import SamplingParams


def check_request(
    params: SamplingParams,
    token_ids: Mapping[str, Sequence[int]],
    salt: bytes,
    deadline_s: float | None,
    vocab_size: int,
) -> None:
    """Raises InvalidArgument. `token_ids`: all that are fed to the model, by the field they came in."""
    check_sampling(params, vocab_size)
    for field, ids in token_ids.items():
        check_token_ids(ids, vocab_size, field)
    if len(salt) > MAX_SALT_BYTES:
        raise InvalidArgument(f"has {len(salt)} bytes, {MAX_SALT_BYTES} are the most", field="salt")
    if deadline_s is not None and math.isnan(deadline_s):
        raise InvalidArgument("must be a number of seconds", field="timeout_s")


def not_understood(error: Exception, kind: str | None) -> BatonError:
    """What whoever sent a message of `kind` hears of the error that reading it raised."""
    return (
        error if isinstance(error, BatonError) else InvalidArgument(repr(error), field=kind or "")
    )
