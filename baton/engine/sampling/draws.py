"""Draws for all samples of a step, so that one which cannot be drawn for costs the others nothing."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch
from torch import Tensor

from baton.engine.sampling.sampler import NonFiniteLogits, Sampler
from baton.errors import BatonError, Internal
from baton.scheduling.step_plan import Drawn

_log = logging.getLogger(__name__)

Failures = list[tuple[int, BatonError]]  # (handle, why)


def draw_each(
    sampler: Sampler, logits: Tensor, handles: Sequence[int]
) -> tuple[list[Drawn], Failures]:
    """The next token of each of `handles`, whose logits are the rows of `logits`, in their order, and
    the samples that have none. What fails for all of several samples alike is no sample's fault, and
    raised."""
    try:
        return sampler.draw(logits, handles), []
    except NonFiniteLogits as error:
        kept = [row for row, handle in enumerate(handles) if handle not in error.handles]
        left = select_rows(logits, kept)
        drawn, failed = draw_each(sampler, left, [handles[row] for row in kept])
        return drawn, failed + [(handle, error) for handle in error.handles]
    except Exception as error:
        if len(handles) == 1:
            _log.exception("sample %d cannot be drawn for", handles[0])
            return [], [(handles[0], Internal(f"the draw failed: {error!r}"))]
        drawn, failed = [], []
        for row, handle in enumerate(handles):
            one, none = draw_each(sampler, logits[row : row + 1], [handle])
            drawn += one
            failed += none
        if not drawn:
            raise
        return drawn, failed


def select_rows(x: Tensor, rows: Sequence[int]) -> Tensor:
    """x[rows], without a copy where that is all of x."""
    if list(rows) == list(range(x.shape[0])):
        return x
    return x[torch.tensor(rows, dtype=torch.int64, device=x.device)]
