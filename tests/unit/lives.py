"""Requests at the router, without one."""

from __future__ import annotations

from baton.instants import RECEIVED
from baton.types import Fingerprint, Role, SamplingParams, Weights, WorkerInfo
from router.models import ServedModel
from router.request import GenerateInput
from router.request_life import RequestLife
from router.validation import ModelLimits

PARAMS = SamplingParams(max_tokens=8)
FINGERPRINT = Fingerprint("model", 64, 1, "fp32", 12, 4, 64)
WEIGHTS = Weights("m", FINGERPRINT.identity)


def make_life(*, traceparent: str = "", num_prompt_tokens: int = 100) -> RequestLife:
    """A request that has just been received, at 0.0 of its router's clock."""
    limits = ModelLimits(max_model_len=4096, vocab_size=1000, has_text=False)
    model = ServedModel("m", None, limits, (FINGERPRINT,))
    prompt = tuple(range(num_prompt_tokens))
    request = GenerateInput(prompt=prompt, traceparent=traceparent)
    return RequestLife.begin("r-1", request, model, PARAMS, prompt, {RECEIVED: 0.0})


def make_worker(name: str, role: Role = Role.DECODE, max_model_len: int = 4096) -> WorkerInfo:
    return WorkerInfo(
        name, 1, role, "", "m", FINGERPRINT, max_model_len, 1000, 1, 1000, "0", ("shm",), "h", 1
    )
