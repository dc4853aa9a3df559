"""An engine without a model: KV is the token ids themselves, and the next token a hash of all before it.

It checks what a real engine could only get silently wrong: that the blocks of a slice really hold the KV of
the tokens before it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from hashlib import blake2b

from baton.scheduling.step_plan import Drawn, NewSample, Slice, StepOutput, StepPlan


def next_token(token_ids: list[int], sample_index: int, vocab_size: int) -> int:
    """The token that follows `token_ids`: the reference for every output."""
    text = repr((token_ids, sample_index)).encode()
    return int.from_bytes(blake2b(text, digest_size=4).digest(), "little") % vocab_size


def expected_output(
    prompt: list[int], sample_index: int, num_tokens: int, vocab_size: int
) -> list[int]:
    tokens = list(prompt)
    for _ in range(num_tokens):
        tokens.append(next_token(tokens, sample_index, vocab_size))
    return tokens[len(prompt) :]


@dataclass
class FakeRunner:
    num_blocks: int
    block_size: int
    vocab_size: int = 100
    samples: dict[int, NewSample] = field(default_factory=dict)
    kv: dict[tuple[int, int], int] = field(default_factory=dict)  # (block, offset) -> token id

    def run(self, plan: StepPlan) -> StepOutput:
        for handle in plan.removed:
            del self.samples[handle]
        for new in plan.added:
            assert new.handle not in self.samples
            self.samples[new.handle] = new
        for source, destination in plan.copies:
            for offset in range(self.block_size):
                if (source, offset) in self.kv:
                    self.kv[destination, offset] = self.kv[source, offset]
        for piece in plan.slices:
            for offset, token in enumerate(piece.token_ids):
                self.kv[self._slot(piece, piece.start + offset)] = token
        return StepOutput([drawn for piece in plan.slices for drawn in self._draw(piece)], 0.01)

    def _draw(self, piece: Slice) -> list[Drawn]:
        seen = [self.kv[self._slot(piece, position)] for position in range(piece.end)]
        return [
            Drawn(handle, next_token(seen, self.samples[handle].sample_index, self.vocab_size))
            for handle in piece.draws
        ]

    def _slot(self, piece: Slice, position: int) -> tuple[int, int]:
        return piece.block_table[position // self.block_size], position % self.block_size
