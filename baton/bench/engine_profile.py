"""Measures an engine profile on this machine: prefill steps of several sizes, decode steps of several
batches, through the runner that workers use.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

from baton.bench.rounds import OnStep, RoundLimits, Steps, rounds
from baton.engine.config import EngineConfig
from baton.engine.runner import ModelRunner
from baton.errors import ConfigError
from baton.planner.profile import DecodeCost, EngineProfile
from baton.scheduling.least_squares import least_squares
from baton.scheduling.step_fit import StepFit
from baton.scheduling.step_plan import NewSample, Slice, StepPlan
from baton.types import SamplingParams

_PREFILL_TOKENS = (32, 64, 128, 256, 384, 512)
_DECODE_BATCHES = ((1, 64), (1, 512), (2, 256), (4, 64), (4, 512), (8, 64), (8, 512))
_LEAST_ROUNDS, _MOST_ROUNDS = 2, 30


@dataclass(frozen=True, slots=True)
class ProfileSettings:
    """It takes about `time_limit_s`, and no less than two rounds. `transfer_bytes_per_s` and `hand_off_s`
    are of the link between workers, which is not measured here (`baton bench kv` does)."""

    engine: EngineConfig
    time_limit_s: float = 60.0
    transfer_bytes_per_s: float = 1e9
    hand_off_s: float = 0.012


def measure(settings: ProfileSettings, on_step: OnStep) -> EngineProfile:
    """Raises ConfigError where the KV cache is too small to measure anything."""
    runner = ModelRunner.load(settings.engine)
    engine = _Engine(runner)
    sizes = [size for size in _PREFILL_TOKENS if engine.fits(1, size)]
    batches = [batch for batch in _DECODE_BATCHES if engine.fits(*batch)]
    if not sizes or not batches:
        raise ConfigError("is too small to measure", field="num_blocks")
    engine.prefill_s(sizes[-1])  # what is slow once is over then
    limits = RoundLimits(_LEAST_ROUNDS, _MOST_ROUNDS, time.monotonic() + settings.time_limit_s)
    steps, fit, decodes = Steps(_MOST_ROUNDS, on_step), StepFit(), []
    for _ in rounds(limits):
        for size in sizes:
            fit.observe(size, engine.prefill_s(size))
        decodes += [(num, length, engine.decode_s(num, length)) for num, length in batches]
        steps.end("round")
    prefill = fit.prefill_cost(sizes[-1])
    assert prefill is not None, "there were prefills"
    return EngineProfile(
        str(settings.engine.model),
        prefill,
        _decode_cost(decodes),
        runner.layout.block_bytes / runner.layout.block_size,
        settings.transfer_bytes_per_s,
        runner.layout.num_layers,
        settings.hand_off_s,
    )


class _Engine:
    """Steps on invented tokens; every stream has blocks of its own."""

    def __init__(self, runner: ModelRunner) -> None:
        self._runner = runner
        greedy = SamplingParams(max_tokens=1, temperature=0.0)
        most = max(num_streams for num_streams, _ in _DECODE_BATCHES)
        samples = [NewSample(handle, 0, greedy, (0,), ()) for handle in range(most)]
        runner.run(StepPlan((), added=samples))

    def fits(self, num_streams: int, length: int) -> bool:
        runner = self._runner
        num_blocks = num_streams * self._blocks_of(length)
        return num_blocks <= runner.num_blocks and length < runner.max_model_len

    def prefill_s(self, num_tokens: int) -> float:
        piece = Slice(self._tokens(num_tokens), 0, range(self._blocks_of(num_tokens)), draws=(0,))
        return self._runner.run(StepPlan([piece])).elapsed_s

    def decode_s(self, num_streams: int, length: int) -> float:
        num_blocks = self._blocks_of(length)
        pieces = [
            Slice(
                self._tokens(1),
                length,
                range(stream * num_blocks, (stream + 1) * num_blocks),
                draws=(stream,),
            )
            for stream in range(num_streams)
        ]
        return self._runner.run(StepPlan(pieces)).elapsed_s

    def _blocks_of(self, length: int) -> int:
        """Of `length` tokens and one more."""
        return length // self._runner.layout.block_size + 1

    def _tokens(self, num_tokens: int) -> list[int]:
        vocab_size = self._runner.model_config.vocab_size
        return [number % vocab_size for number in range(num_tokens)]


def _decode_cost(points: list[tuple[int, int, float]]) -> DecodeCost:
    """By streams and by tokens in their contexts, where both cost something."""
    rows = [(1 / step_s, num / step_s, num * length / step_s) for num, length, step_s in points]
    for width in (3, 2):
        terms = least_squares([row[:width] for row in rows])
        if terms is not None and min(terms) >= 0:
            return DecodeCost(*terms)
    return DecodeCost(sorted(step_s for *_, step_s in points)[len(points) // 2])
