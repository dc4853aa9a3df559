"""Draws the next token of each sample, and gives log-probabilities.

    raw logits ---> logit_bias, penalties, min_tokens       baton.engine.sampling.adjust
        |           temperature, top_k, top_p, min_p        baton.engine.sampling.truncation
        |           the draw                                baton.engine.sampling.selection, race, noise
        |
        +---------> log-probabilities, ranks, alternatives  baton.engine.sampling.logprobs

1. logit_bias is added to the logits of its tokens.
2. repetition_penalty divides the positive and multiplies the negative logits of the tokens of prompt and
   output (CTRL, Keskar et al. 2019). From those of the output are then subtracted frequency_penalty,
   times how often the token stands there, and presence_penalty (OpenAI's definition).
3. Until the output has min_tokens, no end-of-text or stop token is drawn; with ignore_eos only stop
   tokens are kept away, since end-of-text then ends nothing.
4. temperature 0 takes the most likely token, the lowest id among equals. Any other divides the logits.
5. top_k, then top_p, then min_p each leave part of the tokens that the one before left.
6. Gumbel-max draws among these, with the noise of (seed, sample index, output index, token id).

So a draw is a function of its own sample's tokens and parameters and of its own row of logits: the
same alone, in any batch, and continued after any number of its tokens.

Knows no text and no scheduling, and trusts the parameters.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from baton.engine.sampling.adjust import Adjustments, Undo, adjust
from baton.engine.sampling.grouped_logits import GroupedLogits, pad_to_groups
from baton.engine.sampling.logprobs import position_logprobs
from baton.engine.sampling.noise import row_key
from baton.engine.sampling.race import Choices
from baton.engine.sampling.selection import select
from baton.errors import STATUS, Internal
from baton.scheduling.step_plan import Drawn, NewSample
from baton.types import PositionLogprobs

# Any lower temperature above 0 is taken for this: all the mass is on the most likely token as it is,
# and logits divided by it stay finite.
_LEAST_TEMPERATURE = 1e-30


class NonFiniteLogits(Internal):
    """The largest logit of each of the samples `handles` is NaN or infinite.

    Nothing was drawn for any sample: those that are left may draw again from the same logits, and draw
    what they would have drawn.
    """

    def __init__(self, handles: Sequence[int]) -> None:
        named = ", ".join(str(handle) for handle in handles)
        super().__init__(f"no finite largest logit for the samples {named}", field="logits")
        self.handles = tuple(handles)

    @property
    def code(self) -> str:
        return STATUS[Internal].code


class _State:
    """One sample between draws."""

    def __init__(self, sample: NewSample, vocab_size: int) -> None:
        self.params = sample.params
        self.sample_index = sample.sample_index
        self.adjustments = Adjustments(sample, vocab_size)

    @property
    def key(self) -> tuple[int, int]:
        output_index = self.adjustments.num_output_tokens
        return row_key(self.params.seed, self.sample_index, output_index)


class Sampler:
    """Holds the state of every running sample, by handle."""

    def __init__(self, vocab_size: int, device: torch.device) -> None:
        self._vocab_size = vocab_size
        self._device = device
        self._states: dict[int, _State] = {}

    def add(self, sample: NewSample) -> None:
        if sample.handle in self._states:
            raise Internal(f"sample {sample.handle} is already there", field="added")
        self._states[sample.handle] = _State(sample, self._vocab_size)

    def remove(self, handle: int) -> None:
        if self._states.pop(handle, None) is None:
            raise Internal(f"sample {handle} is not there", field="removed")

    @torch.inference_mode()
    def draw(self, logits: Tensor, handles: Sequence[int]) -> list[Drawn]:
        """Draws the next token of each of `handles`, all different, and appends it to the sample.

        `logits` fp32 [len(handles), vocab_size]; changed meanwhile, and restored. Raises
        NonFiniteLogits.
        """
        self._check(logits, len(handles))
        if not handles:
            return []
        states = self._find(handles)
        padded = pad_to_groups(logits)
        undo = adjust(padded, [state.adjustments for state in states])
        try:
            grouped = GroupedLogits.of(padded)
            token_ids = _choose(grouped, states, handles)
        finally:
            undo.apply(padded)
        logprobs = _output_logprobs(padded, grouped, undo, states, token_ids)
        for state, token_id in zip(states, token_ids, strict=True):
            state.adjustments.add(token_id)
        return [
            Drawn(handle, token_id, logprobs.get(row))
            for row, (handle, token_id) in enumerate(zip(handles, token_ids, strict=True))
        ]

    @torch.inference_mode()
    def prompt_logprobs(
        self, logits: Tensor, targets: Sequence[int], top: int
    ) -> list[PositionLogprobs]:
        """Log-probabilities of targets[i] in row i of `logits` fp32 [len(targets), vocab_size], and
        `top` alternatives beside each."""
        self._check(logits, len(targets))
        if not targets:
            return []
        grouped = GroupedLogits.of(pad_to_groups(logits))
        if wrong := _not_finite(grouped.peaks.tolist()):
            raise Internal(f"no finite largest logit in rows {wrong}", field="prompt_logprobs")
        return position_logprobs(grouped, range(len(targets)), targets, [top] * len(targets))

    def _check(self, logits: Tensor, num_rows: int) -> None:
        expected = (torch.float32, (num_rows, self._vocab_size), self._device.type)
        given = (logits.dtype, tuple(logits.shape), logits.device.type)
        if given != expected:
            raise Internal(f"{given}, not {expected}", field="logits")

    def _find(self, handles: Sequence[int]) -> list[_State]:
        if len(set(handles)) != len(handles):
            raise Internal("a sample draws twice in one step", field="draws")
        missing = [handle for handle in handles if handle not in self._states]
        if missing:
            raise Internal(f"the samples {missing} are not there", field="draws")
        return [self._states[handle] for handle in handles]


def _not_finite(peaks: Sequence[float]) -> list[int]:
    return [row for row, peak in enumerate(peaks) if not math.isfinite(peak)]


def _choose(logits: GroupedLogits, states: Sequence[_State], handles: Sequence[int]) -> list[int]:
    """The drawn token of each row."""
    # One copy to the host gives both; in float64 token ids are exact.
    both = torch.stack((logits.peaks.double(), logits.argmax().double())).tolist()
    peaks, token_ids = both[0], [int(token) for token in both[1]]
    if wrong := _not_finite(peaks):
        raise NonFiniteLogits([handles[row] for row in wrong])
    rows = [row for row, state in enumerate(states) if state.params.temperature > 0.0]
    if rows:
        drawn = select(logits, _choices(rows, states, logits.peaks.device)).tolist()
        for row, token_id in zip(rows, drawn, strict=True):
            token_ids[row] = token_id
    return token_ids


def _choices(rows: Sequence[int], states: Sequence[_State], device: torch.device) -> Choices:
    params = [states[row].params for row in rows]
    return Choices(
        rows=torch.tensor(rows, device=device),
        temperatures=torch.tensor(
            [max(p.temperature, _LEAST_TEMPERATURE) for p in params],
            dtype=torch.float64,
            device=device,
        ),
        keys=torch.tensor([states[row].key for row in rows], dtype=torch.int32, device=device),
        limits=[(p.top_k, p.top_p, p.min_p) for p in params],
    )


def _output_logprobs(
    padded: Tensor,
    adjusted: GroupedLogits,
    undo: Undo,
    states: Sequence[_State],
    token_ids: Sequence[int],
) -> dict[int, PositionLogprobs]:
    """Row -> log-probabilities of its drawn token, for the rows that ask."""
    rows = [row for row, state in enumerate(states) if state.params.logprobs is not None]
    if not rows:
        return {}
    raw = adjusted if undo.is_empty else GroupedLogits.of(padded)
    tops = [states[row].params.logprobs or 0 for row in rows]
    found = position_logprobs(raw, rows, [token_ids[row] for row in rows], tops)
    return dict(zip(rows, found, strict=True))
