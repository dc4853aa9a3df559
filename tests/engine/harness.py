"""Drives a ModelRunner without a scheduler: hands out blocks, cuts prompts into slices, keeps logits."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from baton.engine.config import EngineConfig
from baton.engine.runner import ModelRunner
from baton.engine.sampling.sampler import Sampler
from baton.scheduling.step_plan import Drawn, NewSample, Slice, StepOutput, StepPlan
from baton.types import PositionLogprobs, SamplingParams

GREEDY = SamplingParams(max_tokens=1000, temperature=0.0)


class RecordingSampler(Sampler):
    """The sampler, which also keeps the logits it was shown, in order."""

    seen: list[Tensor]

    def draw(self, logits: Tensor, handles: Sequence[int]) -> list[Drawn]:
        self.seen.append(logits.float().cpu().clone())
        return super().draw(logits, handles)

    def prompt_logprobs(
        self, logits: Tensor, targets: Sequence[int], top: int
    ) -> list[PositionLogprobs]:
        self.seen.append(logits.float().cpu().clone())
        return super().prompt_logprobs(logits, targets, top)


class Driver:
    """One runner, and block tables whose blocks are scattered over the pool."""

    def __init__(self, model: str | Path, **settings: Any) -> None:
        config = EngineConfig(model, **{"block_size": 16, "num_blocks": 128} | settings)
        runner = ModelRunner.load(config)
        self.sampler = RecordingSampler(runner.model_config.vocab_size, runner.limits.device)
        self.sampler.seen = []
        self.runner = dataclasses.replace(runner, sampler=self.sampler)
        self._free = list(range(runner.num_blocks))
        random.Random(7).shuffle(self._free)
        self._next_handle = 0

    def table(self, num_tokens: int) -> list[int]:
        num_blocks = -(-num_tokens // self.runner.layout.block_size)
        blocks, self._free = self._free[:num_blocks], self._free[num_blocks:]
        assert len(blocks) == num_blocks, "the test needs more blocks"
        return blocks

    def run(self, *slices: Slice, **rest: Any) -> StepOutput:
        return self.runner.run(StepPlan(slices, **rest))

    def logits(self, *slices: Slice) -> list[Tensor]:
        """Runs one step; per slice the fp32 logits of all its rows [num_rows, vocab_size]."""
        asking = [dataclasses.replace(s, prompt_targets=s.token_ids, draws=()) for s in slices]
        self.sampler.seen.clear()
        self.run(*asking)
        rows = torch.cat(self.sampler.seen)
        return list(rows.split([len(piece.token_ids) for piece in slices]))

    def prefill_logits(
        self, token_ids: Sequence[int], table: Sequence[int], cuts: Sequence[int] = ()
    ) -> Tensor:
        """The logits of every position of one prompt, computed in chunks that end at `cuts`."""
        edges = [0, *cuts, len(token_ids)]
        chunks = [
            self.logits(Slice(token_ids[begin:end], begin, table))[0]
            for begin, end in pairwise(edges)
        ]
        return torch.cat(chunks)

    def generate(
        self, prompts: Sequence[Sequence[int]], num_tokens: int, chunk: int = 10_000
    ) -> list[list[int]]:
        """Greedy continuation of all prompts, prefilled in chunks of one step each, then decoded in
        one batch that grows as prompts finish."""
        tables = [self.table(len(prompt) + num_tokens) for prompt in prompts]
        first_handle = self._next_handle
        self._next_handle += len(prompts)
        handles = range(first_handle, self._next_handle)
        added = [NewSample(handles[i], 0, GREEDY, p, ()) for i, p in enumerate(prompts)]
        self.run(added=added)
        tokens = [list(prompt) for prompt in prompts]
        done = [0] * len(prompts)
        while True:
            slices = []
            for i, prompt in enumerate(prompts):
                if len(tokens[i]) == len(prompt) + num_tokens:
                    continue
                end = min(done[i] + chunk, len(tokens[i]))
                draws = (handles[i],) if end == len(tokens[i]) else ()
                slices.append(Slice(tokens[i][done[i] : end], done[i], tables[i], draws))
                done[i] = end
            if not slices:
                break
            for drawn in self.run(*slices).drawn:
                tokens[drawn.handle - first_handle].append(drawn.token_id)
        self.run(removed=tuple(handles))
        return [tokens[i][len(prompt) :] for i, prompt in enumerate(prompts)]


def prompt_tokens(num_tokens: int, seed: int = 0, vocab_size: int = 300) -> list[int]:
    generator = random.Random(f"{num_tokens}/{seed}")
    return [generator.randrange(vocab_size) for _ in range(num_tokens)]
