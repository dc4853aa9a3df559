"""Which requests a decode worker does not take. Pure."""

from __future__ import annotations

from itertools import chain

from baton.errors import BatonError, DeadlineExceeded, InvalidArgument
from baton.worker.door import check_request
from decode_worker.messages import Start


def refusal(start: Start, max_model_len: int, vocab_size: int, now_s: float) -> BatonError | None:
    """Why `start` cannot be served here, whatever else is going on."""
    if start.deadline_s is not None and now_s >= start.deadline_s:
        return DeadlineExceeded("the deadline passed before the request reached a worker")
    prompt, outputs = start.prompt_token_ids, start.output_token_ids
    longest = len(prompt) + max(map(len, outputs), default=0)
    if not prompt or longest > max_model_len:
        return InvalidArgument(f"has {longest} tokens; 1 to {max_model_len} fit", field="prompt")
    if outputs and len(outputs) != start.params.n:
        return InvalidArgument("must have one entry per sample", field="output_token_ids")
    fed = {"prompt_token_ids": prompt, "output_token_ids": list(chain(*outputs))}
    try:
        check_request(start.params, fed, start.salt, start.deadline_s, vocab_size)
    except InvalidArgument as error:
        return error
    return None
