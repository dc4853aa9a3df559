"""The first steps of a model, before anybody waits for one.

What is slow once (pages of weights, thread pools, kernels that are chosen at first use) is over when it
returns, and its rates are known: a router that compares workers has something to compare. To be called on
the thread that will run the steps, while no block of the cache is in use.
"""

from __future__ import annotations

from baton.engine.runner import ModelRunner
from baton.scheduling.step_plan import NewSample, Slice, StepPlan
from baton.scheduling.step_time import StepTimeModel
from baton.types import SamplingParams

_NUM_TOKENS = 128
_FEW_TOKENS = 16  # tell what a step costs by itself; else all of it would count as the tokens'
_NUM_PREFILLS, _NUM_DECODES = 2, 3  # the first of each teaches nothing
_LONG_S = 1.0  # of a model that takes so long the first prefill has to do
_HANDLE = 0  # schedulers count from 1


def warm_up(runner: ModelRunner, step_time: StepTimeModel) -> None:
    """Prefills and decodes some tokens in the first blocks of the cache; `step_time` learns from it."""
    block_size = runner.layout.block_size
    longest = min(runner.num_blocks * block_size, runner.max_model_len)
    num_tokens = min(_NUM_TOKENS, longest - 1)
    if num_tokens < 1:
        return
    blocks = tuple(range(-(-(num_tokens + 1) // block_size)))
    tokens = [token % runner.model_config.vocab_size for token in range(num_tokens)]
    prefill = Slice(tokens, 0, blocks, draws=(_HANDLE,))
    decode = Slice(tokens[:1], num_tokens, blocks, draws=(_HANDLE,))
    sample = NewSample(_HANDLE, 0, SamplingParams(max_tokens=1, temperature=0.0), tokens, ())
    runner.run(StepPlan((), added=[sample]))
    for number in range(_NUM_PREFILLS):
        elapsed_s = runner.run(StepPlan([prefill])).elapsed_s
        if number or elapsed_s > _LONG_S:
            step_time.observe(num_tokens, 0, elapsed_s)
            break
    few = Slice(tokens[:_FEW_TOKENS], 0, blocks, draws=(_HANDLE,))
    step_time.observe(len(few.token_ids), 0, runner.run(StepPlan([few])).elapsed_s)
    for number in range(_NUM_DECODES):
        elapsed_s = runner.run(StepPlan([decode])).elapsed_s
        if number:
            step_time.observe(0, 1, elapsed_s)
    runner.run(StepPlan((), removed=[_HANDLE]))
