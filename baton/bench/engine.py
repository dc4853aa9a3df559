"""Tokens per second of Baton's engine against transformers' `generate`, beside the machine's limits.

Baton: a decode worker's own step loop, scheduler, sampler and runner without the network, fp16 weights.
transformers: fp32. Same shape, same dummy weights, greedy, run after run in turns in one process.
"""

from __future__ import annotations

import math
import random
import time
from dataclasses import dataclass
from typing import Any

import torch

from baton.bench.engine_result import Pair, row
from baton.bench.engine_sides import BatonEngine, BatonWorker, Transformers
from baton.bench.machine_limits import MachineLimits
from baton.bench.rounds import OnStep, Steps
from baton.engine.models.config import ModelConfig
from baton.engine.models.registry import expected_tensors
from baton.engine.models.shapes import SHAPES
from baton.engine.openmp import release_team
from baton.errors import ConfigError

_SHORT_PAIRS, _LONG_PAIRS = 15, 5
_LONG_PAIR_S = 20.0
_WEIGHT_BYTES = 2  # of a packed fp16 weight


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """`num_pairs` 0: 15, or 5 where a pair takes longer than 20 s."""

    shapes: tuple[str, ...] = ("llama-125m", "qwen2.5-0.5b")
    batches: tuple[int, ...] = (1, 8)
    threads: tuple[int, ...] = (1, 2)
    num_prompt_tokens: int = 128
    num_new_tokens: int = 32
    num_pairs: int = 0
    seed: int = 0


@dataclass(frozen=True, slots=True)
class _Sides:
    baton: BatonWorker
    transformers: Transformers
    limits: MachineLimits


def measure(settings: EngineSettings, on_step: OnStep) -> dict[str, Any]:
    for shape in settings.shapes:
        if shape not in SHAPES:
            raise ConfigError(f"{shape!r} is none of {', '.join(SHAPES)}", field="shapes")
    started_s = time.monotonic()
    num_threads = torch.get_num_threads()
    try:
        rows = _Measurement(settings, on_step).rows()
    finally:
        torch.set_num_threads(num_threads)
    return {
        "rows": rows,
        "prompt_tokens": settings.num_prompt_tokens,
        "new_tokens": settings.num_new_tokens,
        "duration_s": time.monotonic() - started_s,
    }


class _Measurement:
    def __init__(self, settings: EngineSettings, on_step: OnStep) -> None:
        self._settings = settings
        num_rows = len(settings.shapes) * len(settings.batches) * len(settings.threads)
        self._steps = Steps(num_rows * (1 + (settings.num_pairs or _SHORT_PAIRS)), on_step)
        self._limits = MachineLimits()
        self._random = random.Random(settings.seed)

    def rows(self) -> list[dict[str, Any]]:
        found = []
        for shape in self._settings.shapes:
            baton = BatonEngine(shape)
            transformers = Transformers(SHAPES[shape])
            for threads in self._settings.threads:
                torch.set_num_threads(threads)
                with baton.worker() as worker:
                    sides = _Sides(worker, transformers, self._limits)
                    for batch in self._settings.batches:
                        pairs = self._pairs(sides, baton.model_config, batch, shape)
                        size = weight_bytes(baton.model_config)
                        found.append(row(shape, batch, threads, pairs, size))
        return found

    def _pairs(self, sides: _Sides, config: ModelConfig, batch: int, name: str) -> list[Pair]:
        what = f"{name}, batch {batch}, {torch.get_num_threads()} threads"
        begin_s = time.monotonic()
        self._pair(sides, config, batch)
        num_pairs = self._settings.num_pairs or _SHORT_PAIRS
        if not self._settings.num_pairs and time.monotonic() - begin_s > _LONG_PAIR_S:
            num_pairs = _LONG_PAIRS
            self._steps.total -= _SHORT_PAIRS - _LONG_PAIRS
        self._steps.end(what)
        pairs = []
        for _ in range(num_pairs):
            pairs.append(self._pair(sides, config, batch))
            self._steps.end(what)
        return pairs

    def _pair(self, sides: _Sides, config: ModelConfig, batch: int) -> Pair:
        length, num_new = self._settings.num_prompt_tokens, self._settings.num_new_tokens
        prompts = [
            [self._random.randrange(config.vocab_size) for _ in range(length)] for _ in range(batch)
        ]
        pair = Pair(
            baton=sides.baton.run(prompts, num_new),
            transformers=sides.transformers.run(prompts, num_new),
            read_rate=sides.limits.read_rate(),
            gemm_rate=sides.limits.gemm_rate(),
        )
        release_team()
        return pair


def weight_bytes(config: ModelConfig) -> int:
    """What a decode step reads of Baton's weights: every matrix once, of the embeddings only the head."""
    expected = expected_tensors(config)
    matrices = {name: shape for name, shape in expected.items() if len(shape) == 2}
    matrices.setdefault("lm_head.weight", matrices["model.embed_tokens.weight"])
    del matrices["model.embed_tokens.weight"]
    return _WEIGHT_BYTES * sum(math.prod(shape) for shape in matrices.values())
