"""Copies on write between hand-offs, preemptions and cancels, with a real model: no token and no byte of KV
is other than that of a prompt computed alone.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from baton.block_id import chain
from baton.engine.config import EngineConfig
from baton.engine.runner import ModelRunner
from baton.scheduling.step_plan import NewSample, Slice, StepPlan
from baton.types import SamplingParams
from decode_worker.messages import AskPrefill, Cancel, FirstToken, Key
from decode_worker.state_machine import DecodeRequests
from tests.engine.conftest import Checkpoints
from tests.unit.test_decode_hand_off import P, RemoteWorld, act

BLOCK_SIZE = 4
VOCAB = 300


class Alone:
    """The engine of a prefill worker, and the reference: it computes one sequence at a time, anew."""

    def __init__(self, folder: Path) -> None:
        self.runner = load(folder, num_blocks=16)

    def kv(self, token_ids: Sequence[int]) -> Tensor:
        """uint8 [num_layers, num_blocks, size_bytes]"""
        self._step(token_ids)
        return blocks_of(self.runner)[:, : -(-len(token_ids) // BLOCK_SIZE)]

    def next_token(
        self, prompt: Sequence[int], output: Sequence[int], index: int, params: SamplingParams
    ) -> int:
        self.runner.run(StepPlan((), added=(NewSample(1, index, params, prompt, output),)))
        token = self._step([*prompt, *output], draws=(1,))
        self.runner.run(StepPlan((), removed=(1,)))
        return token

    def _step(self, token_ids: Sequence[int], draws: tuple[int, ...] = ()) -> int:
        piece = Slice(token_ids, 0, range(self.runner.num_blocks), draws)
        drawn = self.runner.run(StepPlan((piece,))).drawn
        return drawn[0].token_id if drawn else -1


class RealWorld(RemoteWorld):
    """A decode role on an engine; `alone` is its prefill worker."""

    def __init__(self, folder: Path, num_blocks: int, alone: Alone) -> None:
        super().__init__(num_blocks)
        self.engine = load(folder, num_blocks)
        self.role = DecodeRequests(self.scheduler, self.engine.model_config.vocab_size)
        self.runner = self.engine  # type: ignore[assignment]
        self.alone = alone

    def write(self, ask: AskPrefill, num_tokens: int) -> None:
        first, last = ask.first_block, -(-num_tokens // BLOCK_SIZE)
        if last > first:
            kv = self.alone.kv(ask.token_ids)
            destinations = list(ask.destination_blocks[: last - first])
            blocks_of(self.engine)[:, destinations] = kv[:, first:last]

    def scribble(self, ask: AskPrefill) -> None:
        blocks_of(self.engine)[:, list(ask.destination_blocks)] = 0xFF

    def draw(self, ask: AskPrefill) -> list[FirstToken]:
        prompt = ask.token_ids[: ask.num_prompt_tokens]
        output = ask.token_ids[ask.num_prompt_tokens :]
        num_drawing = 1 if output else ask.params.n
        indices = range(ask.first_sample_index, ask.first_sample_index + num_drawing)
        return [
            FirstToken(index, self.alone.next_token(prompt, output, index, ask.params))
            for index in indices
        ]

    def check_cache(self, sequences: list[list[int]]) -> int:
        """Every block that is published holds the KV of its tokens. How many those are."""
        num_found = 0
        for token_ids in sequences:
            cached = self.blocks.acquire(list(chain(token_ids, BLOCK_SIZE, b"s")))
            kv = self.alone.kv(token_ids)[:, : len(cached)]
            assert torch.equal(blocks_of(self.engine)[:, cached], kv)
            num_found += len(cached)
            self.blocks.release(cached)
        return num_found


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Of a tiny model: more only wait for one another."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def folder(checkpoint: Checkpoints) -> Path:
    return checkpoint("llama")


@pytest.fixture(scope="module")
def alone(folder: Path) -> Alone:
    return Alone(folder)


@pytest.mark.parametrize("seed", range(8))
def test_no_copy_lands_on_blocks_of_others(seed: int, folder: Path, alone: Alone) -> None:
    rng = random.Random(seed)
    world = RealWorld(folder, rng.choice([9, 12]), alone)
    asked: dict[Key, tuple[list[int], SamplingParams]] = {}
    cancelled: set[Key] = set()
    for number in range(24):
        key = (1, number)
        prompt = [rng.randrange(VOCAB) for _ in range(rng.randrange(1, 24))]
        params = SamplingParams(
            n=rng.choice([1, 2, 3]), max_tokens=rng.choice([1, 1, 2, 6]), ignore_eos=True
        )
        asked[key] = (prompt, params)
        world.start(key, prompt, params.max_tokens, n=params.n, prefill=rng.choice([P, None]))
        for _ in range(rng.randrange(6)):
            act(world, rng)
            world.step()
        if rng.random() < 0.2:
            victim = rng.choice([key for key in asked if key not in world.finished] or [key])
            cancelled.add(victim)
            world.role.handle(Cancel(victim, rng.choice([None, 0, 1])), world.now_s)
            world.collect()
    for _ in range(10_000):
        if len(world.finished) == len(asked):
            break
        act(world, rng)
        world.step()
    world.fence_all()
    sequences = []
    for key, (prompt, params) in asked.items():
        for index in range(params.n):
            said = world.tokens[key, index]
            assert len(said) == params.max_tokens or key in cancelled
            for at, token in enumerate(said):
                assert token == alone.next_token(prompt, said[:at], index, params)
            sequences.append([*prompt, *said])
    assert world.check_cache(sequences)
    world.assert_nothing_held()


def load(folder: Path, num_blocks: int) -> ModelRunner:
    return ModelRunner.load(
        EngineConfig(folder, deterministic=True, block_size=BLOCK_SIZE, num_blocks=num_blocks)
    )


def blocks_of(runner: ModelRunner) -> Tensor:
    """The KV pool, uint8 [num_layers, num_blocks, size_bytes]."""
    layout = runner.layout
    return runner.kv_cache.buffer.view(layout.num_layers, runner.num_blocks, -1)
