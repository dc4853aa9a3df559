"""The two engines of `baton.bench.engine` behind one call: tokens of a batch, and when they came.

Both have the same dummy weights and compute greedily until every request has its number of tokens. Who
has computed lets go of its OpenMP threads, so that the other finds the machine as if it were alone.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from itertools import count
from typing import Any

import torch
from torch import Tensor

from baton.bench.engine_result import Run, Step
from baton.engine.config import EngineConfig
from baton.engine.dummy_weights import DummyWeights
from baton.engine.models.config import ModelConfig
from baton.engine.models.dense import DenseConfig
from baton.engine.models.registry import expected_tensors
from baton.engine.openmp import release_team
from baton.engine.runner import ModelRunner
from baton.engine.sampling.sampler import Sampler
from baton.scheduling.block_manager import BlockManager
from baton.types import SamplingParams
from baton.worker.step_loop import StepLoop
from decode_worker.config import DecodeConfig
from decode_worker.messages import Commands, Event, Start
from decode_worker.scheduler import Scheduler
from decode_worker.state_machine import DecodeRequests

Prompts = Sequence[Sequence[int]]


class BatonEngine:
    """A decode worker without its network: role, scheduler, step loop and runner, fp16 weights."""

    def __init__(self, shape: str) -> None:
        self._runner = ModelRunner.load(EngineConfig(shape, load_format="dummy"))

    @property
    def model_config(self) -> ModelConfig:
        return self._runner.model_config

    def worker(self) -> BatonWorker:
        """With torch's present number of threads. Its sampler is its own: of an earlier worker's samples
        the last ones, which no later step has removed, have the same handles."""
        sampler = Sampler(self.model_config.vocab_size, self._runner.limits.device)
        return BatonWorker(replace(self._runner, sampler=sampler))


class BatonWorker:
    """A context manager: its step loop has a thread of its own. It stays up over many runs, so its
    scheduler has learned its rates; prompts must be fresh, or they are found in the cache."""

    def __init__(self, runner: ModelRunner) -> None:
        blocks = BlockManager(runner.num_blocks, runner.layout.block_size)
        limits = DecodeConfig().limits(runner.max_model_len)
        role = DecodeRequests(Scheduler(blocks, limits), runner.model_config.vocab_size)
        self._loop: StepLoop[Event, Commands] = StepLoop(role, runner, self._deliver, self._failed)
        self._keys = count()
        self._num_running = 0
        self._steps: list[Step] = []
        self._error: BaseException | None = None
        self._ended = threading.Event()

    def __enter__(self) -> BatonWorker:
        self._loop.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._loop.stop()

    def run(self, prompts: Prompts, num_new: int) -> Run:
        self._steps, self._num_running = [], len(prompts)
        self._ended.clear()
        params = SamplingParams(max_tokens=num_new, temperature=0.0, ignore_eos=True)
        start_s = time.perf_counter()
        for prompt in prompts:
            self._loop.post(_start(next(self._keys), prompt, params))
        self._ended.wait()
        if self._error is not None:
            raise self._error
        ended_s = time.perf_counter()
        self._loop.ask(release_team).result()
        return Run(start_s, ended_s, self._steps)

    # On the step loop's thread

    def _deliver(self, commands: Commands) -> None:
        now_s = time.perf_counter()
        for outbox in commands.outboxes.values():
            if outbox.token_ids:
                self._steps.append(Step(now_s, len(outbox.token_ids)))
            for finished in outbox.finished:
                self._num_running -= 1
                self._error = self._error or finished.error
        if self._num_running == 0:
            self._ended.set()

    def _failed(self, error: BaseException) -> None:
        self._error = error
        self._ended.set()


class Transformers:
    """`generate` in fp32, with its own KV cache and attention."""

    def __init__(self, config: DenseConfig) -> None:
        import transformers

        logging.getLogger("transformers").setLevel(logging.ERROR)
        model: Any = transformers.AutoModelForCausalLM.from_config(
            transformers_config(config), dtype=torch.float32
        )
        expected = expected_tensors(config)
        weights = DummyWeights(expected)
        state = {name: weights.read(name) for name in expected}
        if config.tie_word_embeddings:
            state["lm_head.weight"] = state["model.embed_tokens.weight"]
        model.load_state_dict(state)
        model.generation_config.eos_token_id = None  # nothing ends early
        model.generation_config.pad_token_id = 0
        self._model = model.eval()

    @torch.inference_mode()
    def run(self, prompts: Prompts, num_new: int) -> Run:
        """All prompts are of one length."""
        input_ids = torch.tensor(prompts)
        streamer = _Streamer()
        start_s = time.perf_counter()
        self._model.generate(
            input_ids,
            attention_mask=torch.ones_like(input_ids),
            max_new_tokens=num_new,
            do_sample=False,
            streamer=streamer,
        )
        ended_s = time.perf_counter()
        release_team()
        return Run(start_s, ended_s, streamer.steps)


class _Streamer:
    """What `generate` tells: the prompts first, then the tokens of every step."""

    def __init__(self) -> None:
        self.steps: list[Step] = []
        self._seen_prompts = False

    def put(self, value: Tensor) -> None:
        if self._seen_prompts:
            self.steps.append(Step(time.perf_counter(), value.numel()))
        self._seen_prompts = True

    def end(self) -> None:
        pass


def transformers_config(config: DenseConfig) -> Any:
    import transformers

    return transformers.AutoConfig.for_model(
        config.architecture.removesuffix("ForCausalLM").lower(),
        vocab_size=config.vocab_size,
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        num_hidden_layers=config.num_layers,
        num_attention_heads=config.attention[0].num_heads,
        num_key_value_heads=config.num_kv_heads,
        head_dim=config.head_dim,
        max_position_embeddings=config.max_position_embeddings,
        rms_norm_eps=config.rms_norm_eps,
        rope_parameters={"rope_type": "default", "rope_theta": config.rope.theta},
        tie_word_embeddings=config.tie_word_embeddings,
    )


def _start(number: int, prompt: Sequence[int], params: SamplingParams) -> Start:
    return Start(
        key=(0, number),
        request_id=str(number),
        attempt=0,
        prompt_token_ids=prompt,
        output_token_ids=(),
        params=params,
        eos_token_ids=(),
        salt=b"",
    )
