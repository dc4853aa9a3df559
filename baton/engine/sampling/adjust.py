"""What changes single logits before a token is chosen: logit_bias, penalties, min_tokens.

Each concerns few tokens, so each is kept as a list of tokens per sample and applied by index; a
sample that asks for nothing costs nothing. Token ids outside the vocabulary name what cannot be
drawn, and are ignored.

Knows no noise, and nothing of how a token is chosen.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from baton.scheduling.step_plan import NewSample
from baton.types import SamplingParams

Ids = NDArray[np.int64]


class TokenCounts:
    """How often each token stands in the output; with 0, those of the prompt, where it matters."""

    def __init__(self, prompt_token_ids: Collection[int], vocab_size: int) -> None:
        self._vocab_size = vocab_size
        self._tokens: Ids = np.empty(0, np.int64)
        self._counts = np.empty(0, np.float32)
        self._slots: dict[int, int] = {}
        for token in dict.fromkeys(prompt_token_ids):
            self._slot(token)

    def add(self, token: int) -> None:
        """Counts one output token."""
        slot = self._slot(token)
        if slot is not None:
            self._counts[slot] += 1

    @property
    def tokens(self) -> Ids:
        return self._tokens[: len(self._slots)]

    @property
    def counts(self) -> NDArray[np.float32]:
        return self._counts[: len(self._slots)]

    def _slot(self, token: int) -> int | None:
        if not 0 <= token < self._vocab_size:
            return None
        slot = self._slots.setdefault(token, len(self._slots))
        if slot == len(self._tokens):
            self._tokens = np.resize(self._tokens, 2 * slot + 16)
            self._counts = np.append(self._counts, np.zeros(slot + 16, np.float32))
        self._tokens[slot] = token
        return slot


class Adjustments:
    """Those of one sample. `add` follows its output."""

    def __init__(self, sample: NewSample, vocab_size: int) -> None:
        params = sample.params
        self.params = params
        bias = {t: value for t, value in params.logit_bias.items() if 0 <= t < vocab_size}
        self.bias_tokens: Ids = np.fromiter(bias, np.int64, len(bias))
        self.bias = np.fromiter(bias.values(), np.float32, len(bias))
        # With ignore_eos an end-of-text token ends nothing, so min_tokens need not keep it away.
        enders = {*params.stop_token_ids, *(() if params.ignore_eos else sample.eos_token_ids)}
        enders = {token for token in enders if 0 <= token < vocab_size}
        self.enders: Ids = np.fromiter(sorted(enders), np.int64, len(enders))
        self.counts: TokenCounts | None = None
        if _penalises(params):
            repeats = params.repetition_penalty != 1.0
            self.counts = TokenCounts(sample.prompt_token_ids if repeats else (), vocab_size)
        self.num_output_tokens = 0
        for token in sample.output_token_ids:
            self.add(token)

    def add(self, token: int) -> None:
        self.num_output_tokens += 1
        if self.counts is not None:
            self.counts.add(token)

    @property
    def bans_enders(self) -> bool:
        return self.num_output_tokens < self.params.min_tokens and self.enders.size > 0


@dataclass(frozen=True, slots=True)
class Undo:
    """What the logits were where they were changed, in the order of change."""

    changes: Sequence[tuple[Tensor, Tensor]]

    @property
    def is_empty(self) -> bool:
        return not self.changes

    def apply(self, logits: Tensor) -> None:
        flat = logits.view(-1)
        for index, old in reversed(self.changes):
            flat[index] = old


def adjust(logits: Tensor, samples: Sequence[Adjustments]) -> Undo:
    """Changes the dense `logits` [len(samples), width] in place: bias, penalties, bans. They are as they
    were where it raises."""
    changes: list[tuple[Tensor, Tensor]] = []
    try:
        _adjust(logits, samples, changes)
    except BaseException:
        Undo(changes).apply(logits)
        raise
    return Undo(changes)


def _adjust(
    logits: Tensor, samples: Sequence[Adjustments], changes: list[tuple[Tensor, Tensor]]
) -> None:
    """Appends to `changes` what the logits were, before it changes them."""
    flat = logits.view(-1)

    def change(rows: list[int], tokens: list[Ids], new: Callable[[Tensor], Tensor]) -> None:
        index = torch.from_numpy(_flat_index(rows, tokens, logits.shape[1])).to(logits.device)
        old = flat[index]
        changes.append((index, old))
        flat[index] = new(old)

    def rows_where(asks: Callable[[Adjustments], bool]) -> list[int]:
        return [row for row, sample in enumerate(samples) if asks(sample)]

    if rows := rows_where(lambda sample: sample.bias.size > 0):
        bias = torch.from_numpy(np.concatenate([samples[row].bias for row in rows]))
        tokens = [samples[row].bias_tokens for row in rows]
        change(rows, tokens, lambda old: old + bias.to(logits.device))
    counted = [(row, c) for row, s in enumerate(samples) if (c := s.counts) and c.tokens.size]
    if counted:
        rows = [row for row, _ in counted]
        table = _penalty_table([samples[row].params for row in rows], [c for _, c in counted])
        change(
            rows,
            [counts.tokens for _, counts in counted],
            lambda old: _penalise(old, torch.from_numpy(table).to(logits.device)),
        )
    if rows := rows_where(lambda sample: sample.bans_enders):
        tokens = [samples[row].enders for row in rows]
        change(rows, tokens, lambda old: torch.full_like(old, -torch.inf))


def _penalises(params: SamplingParams) -> bool:
    neutral = (1.0, 0.0, 0.0)
    penalties = (params.repetition_penalty, params.frequency_penalty, params.presence_penalty)
    return penalties != neutral


def _flat_index(rows: list[int], tokens: list[Ids], width: int) -> Ids:
    starts = np.repeat(np.asarray(rows, np.int64) * width, [len(ids) for ids in tokens])
    index: Ids = starts + np.concatenate(tokens)
    return index


def _penalty_table(
    params: Sequence[SamplingParams], counts: Sequence[TokenCounts]
) -> NDArray[np.float32]:
    """[2, num_tokens]: each token's repetition penalty, and what frequency and presence take."""
    lengths = [len(of.tokens) for of in counts]
    times = np.concatenate([of.counts for of in counts])
    penalties = np.array(
        [[p.repetition_penalty, p.frequency_penalty, p.presence_penalty] for p in params],
        np.float32,
    )
    repetition, frequency, presence = np.repeat(penalties, lengths, axis=0).T
    table: NDArray[np.float32] = np.stack(
        (repetition, frequency * times + presence * (times > 0))
    ).astype(np.float32)
    return table


def _penalise(logits: Tensor, table: Tensor) -> Tensor:
    repetition, taken = table
    return torch.where(logits < 0, logits * repetition, logits / repetition).sub_(taken)
