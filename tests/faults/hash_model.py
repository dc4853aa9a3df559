"""A model whose KV is a hash of all tokens before, so that a wrong byte anywhere is found by what it is.

    state[t] = state[t - 1] * a + token[t] + 1                          modulo 2^64
    KV of token t, word w of strip s of layer l = state[t] * odd[l, s, w]

As a real model does, it reads the KV of earlier tokens from their blocks: what is wrong there goes on into
every token that follows.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from baton.scheduling.step_plan import Drawn, Slice, StepOutput, StepPlan
from kv_transfer.layout import PoolLayout
from kv_transfer.pool import Pool
from tests.faults.dealing import BLOCK_SIZE, NUM_BLOCKS, VOCAB_SIZE

LAYOUT = PoolLayout(
    num_layers=3,
    num_blocks=NUM_BLOCKS,
    num_kv_heads=2,
    block_size=BLOCK_SIZE,
    head_dim=32,
    dtype="fp32",
)

_FACTOR = 6364136223846793005
_MASK = (1 << 64) - 1
_NUM_STRIPS = 2 * LAYOUT.num_kv_heads
_NUM_WORDS = LAYOUT.head_dim * 4 // 8
_ODD = np.random.default_rng(7).integers(
    0, 1 << 63, (LAYOUT.num_layers, _NUM_STRIPS, _NUM_WORDS), np.uint64
) | np.uint64(1)
_ODD[0, 0, 0] = 1  # so that the state itself can be read back

Words = NDArray[np.uint64]


def states(token_ids: Sequence[int], before: int = 0) -> list[int]:
    """The state after each token, from that before the first."""
    found = []
    for token in token_ids:
        before = (before * _FACTOR + token + 1) & _MASK
        found.append(before)
    return found


def next_token(state: int) -> int:
    return (state >> 33) % VOCAB_SIZE


def expected_output(prompt: Sequence[int], num_tokens: int) -> list[int]:
    tokens = list(prompt)
    for _ in range(num_tokens):
        tokens.append(next_token(states(tokens)[-1]))
    return tokens[len(prompt) :]


class HashModel:
    """A runner of steps on the blocks of `pool`. `layer_s`: how long each layer takes, beside the hash."""

    def __init__(self, pool: Pool, layer_s: float = 0.0) -> None:
        shape = (LAYOUT.num_layers, NUM_BLOCKS, _NUM_STRIPS, BLOCK_SIZE, _NUM_WORDS)
        self._kv: Words = pool.memory.numpy().view(np.uint64).reshape(shape)
        self._layer_s = layer_s

    def run(self, plan: StepPlan, on_layer: Callable[[int], None] | None = None) -> StepOutput:
        begin_s = time.perf_counter()
        assert not plan.copies  # nobody asks for two samples
        computed = [states(piece.token_ids, self._state_before(piece)) for piece in plan.slices]
        for layer in range(LAYOUT.num_layers):
            for piece, found in zip(plan.slices, computed, strict=True):
                positions = np.arange(piece.start, piece.end)
                blocks = np.array(piece.block_table)[positions // BLOCK_SIZE]
                self._kv[layer, blocks, :, positions % BLOCK_SIZE] = kv(found, layer)
            time.sleep(self._layer_s)
            if on_layer is not None:
                on_layer(layer)
        drawn = [
            Drawn(handle, next_token(found[-1]))
            for piece, found in zip(plan.slices, computed, strict=True)
            for handle in piece.draws
        ]
        return StepOutput(drawn, time.perf_counter() - begin_s)

    def num_wrong_bytes(self, token_ids: Sequence[int], block_table: Sequence[int]) -> int:
        """Of the KV of `token_ids` as it lies in these blocks."""
        positions = np.arange(len(token_ids))
        blocks = np.array(block_table)[positions // BLOCK_SIZE]
        wanted = states(token_ids)
        num_wrong = 0
        for layer in range(LAYOUT.num_layers):
            found = self._kv[layer, blocks, :, positions % BLOCK_SIZE]
            wrong = found.view(np.uint8) != kv(wanted, layer).view(np.uint8)
            num_wrong += int(wrong.sum())
        return num_wrong

    def _state_before(self, piece: Slice) -> int:
        if piece.start == 0:
            return 0
        block, offset = divmod(piece.start - 1, BLOCK_SIZE)
        return int(self._kv[0, piece.block_table[block], 0, offset, 0])


class CheckedModel(HashModel):
    """Counts, before it goes on from KV, the bytes of it that are wrong."""

    def __init__(self, pool: Pool) -> None:
        super().__init__(pool)
        self.num_wrong = 0
        self._tokens: dict[int, list[int]] = {}  # by handle: all that are known

    def run(self, plan: StepPlan, on_layer: Callable[[int], None] | None = None) -> StepOutput:
        for handle in plan.removed:
            del self._tokens[handle]
        for new in plan.added:
            self._tokens[new.handle] = [*new.prompt_token_ids, *new.output_token_ids]
        for piece in plan.slices:
            for handle in piece.draws[:1]:
                known = self._tokens[handle][: piece.start]
                self.num_wrong += self.num_wrong_bytes(known, piece.block_table)
        output = super().run(plan, on_layer)
        for drawn in output.drawn:
            self._tokens[drawn.handle].append(drawn.token_id)
        return output


def kv(found: Sequence[int], layer: int) -> Words:
    """KV of tokens with these states [num_tokens, num_strips, num_words]."""
    words: Words = np.array(found, np.uint64)[:, None, None] * _ODD[layer]
    return words
