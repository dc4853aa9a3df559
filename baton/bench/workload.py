"""What a load generator sends: when, how long, and which tokens.

It knows no server and no clock. Everything random comes from a seed, so that the same settings put
the same load on two servers.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import TypeVar

Item = TypeVar("Item")

# Common words, each one token in most vocabularies when a space precedes it.
_TEXT = """
the of and to in a is that for it as was with be by on not he his but at are this have from or had
an they which one you were her all she there would their we him been has when who will more no if
out so said what up its about into than them can only other new some could time these two may then
do first any my now such like our over man me even most made after also did many before must
through back years where much your way well down should because each just those people how too
little state good very make world still own see men work long get here between both life being
under never day
"""
_WORDS = tuple(_TEXT.split())


@dataclass(frozen=True, slots=True)
class Lengths:
    """A number of tokens, drawn evenly from `least` to `most`, both included."""

    least: int
    most: int

    def draw(self, random_: random.Random) -> int:
        return random_.randint(self.least, self.most)


@dataclass(frozen=True, slots=True)
class PlannedRequest:
    """`due_s`: when to send it, from the start of the run; None as soon as there is room.

    `block_hashes` (of a trace): the prompt in blocks of `block_size` tokens; requests whose hashes
    begin alike share exactly that much of their prompts.
    """

    index: int
    num_prompt_tokens: int
    num_output_tokens: int
    due_s: float | None = None
    block_hashes: tuple[int, ...] = ()
    block_size: int = 0


def synthetic(
    num_requests: int, prompt: Lengths, output: Lengths, *, seed: int
) -> list[PlannedRequest]:
    draw = random.Random(f"{seed}/lengths")
    return [
        PlannedRequest(index, prompt.draw(draw), output.draw(draw)) for index in range(num_requests)
    ]


def poisson(requests: Sequence[PlannedRequest], rate: float, *, seed: int) -> list[PlannedRequest]:
    """The same requests, arriving at random at `rate` a second; the first one at once."""
    draw = random.Random(f"{seed}/arrivals")
    gaps = (draw.expovariate(rate) for _ in requests[1:])
    times = accumulate(gaps, initial=0.0)
    return [replace(request, due_s=due_s) for request, due_s in zip(requests, times, strict=True)]


def sped_up(requests: Sequence[PlannedRequest], speedup: float) -> list[PlannedRequest]:
    return [replace(r, due_s=None if r.due_s is None else r.due_s / speedup) for r in requests]


def fitted(requests: Iterable[PlannedRequest], max_model_len: int) -> list[PlannedRequest]:
    """Requests longer than the model's context, shortened to it: the output first to no less than
    half of the context, then the prompt at its end."""
    return [_fitted(request, max_model_len) for request in requests]


def _fitted(request: PlannedRequest, max_model_len: int) -> PlannedRequest:
    output = min(request.num_output_tokens, max(1, max_model_len // 2))
    output = max(output, min(request.num_output_tokens, max_model_len - request.num_prompt_tokens))
    prompt = min(request.num_prompt_tokens, max_model_len - output)
    return replace(request, num_prompt_tokens=prompt, num_output_tokens=output)


def prompt_token_ids(request: PlannedRequest, vocab_size: int, *, seed: int) -> list[int]:
    """Random ids below `vocab_size`, `request.num_prompt_tokens` of them."""
    return _content(request, range(vocab_size), seed)


def prompt_text(request: PlannedRequest, *, seed: int) -> str:
    """Random words, one per wanted token: how many tokens they are is the server's to say."""
    return " ".join(_content(request, _WORDS, seed))


def _content(request: PlannedRequest, alphabet: Sequence[Item], seed: int) -> list[Item]:
    content: list[Item] = []
    for block_hash in request.block_hashes:
        draw = random.Random(f"{seed}/block/{block_hash}")
        content += draw.choices(alphabet, k=request.block_size)
    if len(content) < request.num_prompt_tokens:
        draw = random.Random(f"{seed}/request/{request.index}")
        content += draw.choices(alphabet, k=request.num_prompt_tokens - len(content))
    return content[: request.num_prompt_tokens]
