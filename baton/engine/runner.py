"""Runs step plans on one device: the step's tensors, the forward pass, the draws.

    plan -> sampler state, copies -> inputs -> decoder -> logits of the rows that draw -> drawn tokens

Knows no request, no scheduler and no clock but the one that times the step.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from baton.engine.attention.base import StepAttention
from baton.engine.config import EngineConfig
from baton.engine.dummy_weights import DummyWeights
from baton.engine.kv_cache import KvCache, KvCacheLayout
from baton.engine.models.config import ModelConfig
from baton.engine.models.decoder import Decoder
from baton.engine.models.loader import Progress
from baton.engine.models.registry import (
    build_decoder,
    expected_tensors,
    ignored_tensors,
    read_model_config,
)
from baton.engine.models.shapes import SHAPES
from baton.engine.numerics import Backends, choose_backends
from baton.engine.sampling.draws import Failures, draw_each, select_rows
from baton.engine.sampling.sampler import Sampler
from baton.engine.step_inputs import BadSlices, StepInputs, StepLimits, build_inputs
from baton.engine.weights import Checkpoint, WeightSource
from baton.errors import BatonError, ConfigError
from baton.scheduling.step_plan import Drawn, Slice, StepOutput, StepPlan
from baton.types import PositionLogprobs

_log = logging.getLogger(__name__)

# Rows of prompt log-probabilities computed at a time: one row of a 150,000 token vocabulary is 600 KB.
_PROMPT_ROWS = 64


@dataclass(frozen=True, slots=True)
class ModelRunner:
    """`identity`: a hash of weights and config, equal for workers that may be paired."""

    model_config: ModelConfig
    max_model_len: int
    identity: str
    decoder: Decoder
    kv_cache: KvCache
    backends: Backends
    sampler: Sampler
    limits: StepLimits

    @staticmethod
    def load(
        config: EngineConfig,
        progress: Progress | None = None,
        allocate: Callable[[int], Tensor] | None = None,
    ) -> ModelRunner:
        """Reads the checkpoint and makes the KV cache, in memory (uint8) that `allocate` gives for a
        number of bytes, or in the device's own."""
        _check(config)
        num_threads = config.num_threads or torch.get_num_threads()
        # Packing gains a tenth from a second thread; a neighbour who computes on the same cores, as the
        # worker that this one replaces does, would lose nearly all of its speed.
        torch.set_num_threads(1)
        try:
            return ModelRunner._load(config, progress, allocate)
        finally:
            torch.set_num_threads(num_threads)

    @staticmethod
    def _load(
        config: EngineConfig,
        progress: Progress | None,
        allocate: Callable[[int], Tensor] | None,
    ) -> ModelRunner:
        model_config, source = _open(config)
        max_model_len = _max_model_len(config, model_config)
        backends = choose_backends(config, model_config)
        layout = KvCacheLayout(
            num_layers=model_config.num_layers,
            num_kv_heads=model_config.num_kv_heads,
            block_size=config.block_size,
            head_dim=model_config.head_dim,
            dtype=backends.kv_dtype,
        )
        num_blocks = config.num_blocks or layout.num_blocks_in(config.kv_cache_bytes)
        # Tables of positions are made for this many: no sample is longer than the pool.
        max_model_len = min(max_model_len, num_blocks * config.block_size)
        device = backends.numerics.device
        # Not in inference mode: a transfer may write to the cache from outside it.
        buffer = allocate(layout.size_bytes(num_blocks)) if allocate else None
        kv_cache = KvCache(layout, num_blocks, device, buffer)
        with torch.inference_mode():
            decoder = build_decoder(
                model_config, source, backends.numerics, max_model_len, progress
            )
        _log.info(
            "loaded %s: %s, %d KV blocks of %d tokens (%s)",
            *(config.model, backends.description, num_blocks, config.block_size, layout.dtype),
        )
        return ModelRunner(
            model_config=model_config,
            max_model_len=max_model_len,
            identity=source.identity,
            decoder=decoder,
            kv_cache=kv_cache,
            backends=backends,
            sampler=Sampler(model_config.vocab_size, device),
            limits=StepLimits(
                model_config.vocab_size, max_model_len, num_blocks, config.block_size, device
            ),
        )

    @property
    def layout(self) -> KvCacheLayout:
        return self.kv_cache.layout

    @property
    def num_blocks(self) -> int:
        return self.kv_cache.num_blocks

    @torch.inference_mode()
    def run(self, plan: StepPlan, on_layer: Callable[[int], None] | None = None) -> StepOutput:
        """Runs one step. `on_layer(i)` is called once all KV of layer i of this step is written."""
        started = time.perf_counter()
        for handle in plan.removed:
            self.sampler.remove(handle)
        for sample in plan.added:
            self.sampler.add(sample)
        self.kv_cache.copy_blocks(plan.copies)
        if not plan.slices:
            return StepOutput(drawn=(), elapsed_s=time.perf_counter() - started)
        try:
            inputs = build_inputs(plan.slices, self.limits)
        except BadSlices as error:
            _log.error("a step was not computed: %s", error)
            elapsed_s = time.perf_counter() - started
            return StepOutput((), elapsed_s, failed_slices=error.faults, computed=False)
        attention = StepAttention(
            self.backends.attention, self.kv_cache, inputs.attention, on_layer
        )
        hidden = self.decoder.forward(inputs.token_ids, inputs.positions, attention)
        prompt_logprobs, failed_slices = self._prompt_logprobs(hidden, plan.slices, inputs)
        drawn, failed = self._draw(hidden, plan.slices, inputs)
        if self.limits.device.type == "cuda":
            # A step that draws nothing also takes time; the copies of hand-offs are not waited for.
            torch.cuda.current_stream(self.limits.device).synchronize()
        elapsed_s = time.perf_counter() - started
        return StepOutput(drawn, elapsed_s, prompt_logprobs, failed, failed_slices)

    def _draw(
        self, hidden: Tensor, slices: Sequence[Slice], inputs: StepInputs
    ) -> tuple[list[Drawn], Failures]:
        """Draws for every slice that asks; its samples share the logits of its last row."""
        rows: list[int] = []
        logits_rows: list[int] = []
        handles: list[int] = []
        for piece, (first_row, num_rows, _) in zip(slices, inputs.attention.slices, strict=True):
            if piece.draws:
                logits_rows += [len(rows)] * len(piece.draws)
                rows.append(first_row + num_rows - 1)
                handles += piece.draws
        if not handles:
            return [], []
        logits = select_rows(self.decoder.logits(select_rows(hidden, rows)), logits_rows)
        return draw_each(self.sampler, logits, handles)

    def _prompt_logprobs(
        self, hidden: Tensor, slices: Sequence[Slice], inputs: StepInputs
    ) -> tuple[dict[int, list[PositionLogprobs]], dict[int, BatonError]]:
        """By index of the slice: what was found, and of which slices nothing can be said."""
        found: dict[int, list[PositionLogprobs]] = {}
        failed: dict[int, BatonError] = {}
        for index, piece in enumerate(slices):
            if not piece.prompt_targets:
                continue
            try:
                found[index] = self._slice_logprobs(hidden, piece, inputs.attention.slices[index])
            except BatonError as error:
                _log.warning("no log-probabilities of a prompt: %s", error)
                failed[index] = error
        return found, failed

    def _slice_logprobs(
        self, hidden: Tensor, piece: Slice, place: tuple[int, int, int]
    ) -> list[PositionLogprobs]:
        first_row = place[0]
        found: list[PositionLogprobs] = []
        for begin in range(0, len(piece.prompt_targets), _PROMPT_ROWS):
            targets = piece.prompt_targets[begin : begin + _PROMPT_ROWS]
            rows = hidden[first_row + begin : first_row + begin + len(targets)]
            logits = self.decoder.logits(rows)
            found += self.sampler.prompt_logprobs(logits, targets, piece.prompt_top)
        return found


def _check(config: EngineConfig) -> None:
    if config.block_size < 1:
        raise ConfigError(f"must be at least 1, found {config.block_size}", field="block_size")
    for name in ("num_blocks", "num_threads", "kv_cache_bytes"):
        value = getattr(config, name)
        if value < 0:
            raise ConfigError(f"must not be negative, found {value}", field=name)


def _open(config: EngineConfig) -> tuple[ModelConfig, WeightSource]:
    dummy = config.load_format == "dummy"
    if dummy and str(config.model) in SHAPES:
        shape = SHAPES[str(config.model)]
        return shape, DummyWeights(expected_tensors(shape))
    folder = Path(config.model)
    if not folder.is_dir():
        known = f", nor one of the shapes {', '.join(SHAPES)}" if dummy else ""
        raise ConfigError(f"{folder} is no folder{known}", field="model")
    model_config = read_model_config(folder)
    expected = expected_tensors(model_config)
    if dummy:
        return model_config, DummyWeights(expected)
    return model_config, Checkpoint(folder, expected, ignored_tensors(model_config))


def _max_model_len(config: EngineConfig, model_config: ModelConfig) -> int:
    longest = model_config.max_position_embeddings
    if not 0 <= config.max_model_len <= longest:
        raise ConfigError(
            f"{config.max_model_len} is not between 0 and the model's own {longest}",
            field="max_model_len",
        )
    return config.max_model_len or longest
