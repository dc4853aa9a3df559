"""transformers as the reference for outputs: what it would have drawn, and by which margin.

The rule of exactness: a token that differs from the reference's choice is accepted only where the
reference itself is almost undecided between the two; such ties are counted, and many of them fail.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers

TIE_MARGIN = {"fp32": 1e-4, "fp16": 1e-2, "bf16": 1e-1}
_MAX_TIES_PER_TOKEN = 1 / 2000


@dataclass
class Ties:
    """Accepted ties over all tokens compared."""

    num_tokens: int = 0
    num_ties: int = 0

    def check(self) -> None:
        print(f"{self.num_ties} ties in {self.num_tokens} tokens")
        assert self.num_ties <= max(1, self.num_tokens * _MAX_TIES_PER_TOKEN)


class Reference:
    """A checkpoint in transformers, fp32."""

    def __init__(self, folder: Path) -> None:
        model: Any = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        self._model = model.eval()

    @torch.inference_mode()
    def logits(self, token_ids: Sequence[int]) -> torch.Tensor:
        """[num_tokens, vocab_size]: row i follows token i."""
        logits: torch.Tensor = self._model(torch.tensor([list(token_ids)])).logits[0]
        return logits

    def logprobs(self, token_ids: Sequence[int]) -> torch.Tensor:
        return torch.log_softmax(self.logits(token_ids).double(), -1)

    def check_greedy(
        self, prompt: Sequence[int], output: Sequence[int], dtype: str, ties: Ties
    ) -> None:
        """Every token of `output` is the reference's choice after all before it, or a counted tie."""
        rows = self.logits([*prompt, *output[:-1]])[len(prompt) - 1 :]
        best = rows.max(-1)
        chosen = rows[torch.arange(len(output)), torch.tensor(output)]
        for index, margin in enumerate((best.values - chosen).tolist()):
            if output[index] != int(best.indices[index]):
                assert margin < TIE_MARGIN[dtype], (
                    f"token {index} of a prompt of {len(prompt)}: {output[index]} instead of "
                    f"{int(best.indices[index])}, margin {margin}"
                )
                ties.num_ties += 1
        ties.num_tokens += len(output)
