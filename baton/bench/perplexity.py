"""What the KV cache's dtype does to a model's perplexity on text that it has not seen.

The text goes through the engine as requests do: windows of tokens, each with blocks of its own, either
prefilled at once or token by token as in decode, where a quantized block fills up step by step. Attention
reads every key and value, also those of the same step, from the paged cache.

Windows advance by half their length and only their second half is counted (of the first window all), so a
counted token has at least half a window before it: demo/train.py measures alike. What a dtype adds is
compared window by window with the first dtype's.
"""

from __future__ import annotations

import gzip
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from baton.bench.data import data_file
from baton.bench.rounds import OnStep, Steps
from baton.engine.config import EngineConfig, KvDtype
from baton.engine.runner import ModelRunner
from baton.errors import ConfigError
from baton.scheduling.step_plan import Slice, StepPlan

_ROOT = Path(__file__).resolve().parents[2]
_BATCH = 32  # windows computed side by side

FEEDS = ("prefill", "decode")  # a window at once, or token by token


@dataclass(frozen=True, slots=True)
class PerplexitySettings:
    """`text`: gzipped, tinyshakespeare where None; the last tenth of it is held out, of which the first
    `num_tokens` are taken (0: all)."""

    model: Path = _ROOT / "demo" / "model"
    text: Path | None = None
    kv_dtypes: tuple[KvDtype, ...] = ("fp32", "fp16", "int8", "fp8")
    window: int = 512
    num_tokens: int = 0
    block_size: int = 64
    device: str = "cpu"


@dataclass(frozen=True, slots=True)
class Window:
    """Tokens that begin with the model's own prefix; those from `counted_from` on are counted."""

    token_ids: Sequence[int]
    counted_from: int


@dataclass(frozen=True, slots=True)
class HeldOut:
    windows: Sequence[Window]
    num_tokens: int
    num_bytes: int


def measure(settings: PerplexitySettings, on_step: OnStep) -> dict[str, Any]:
    text = read_held_out(settings)
    num_rounds = len(settings.kv_dtypes) * len(FEEDS)
    steps = Steps(num_rounds * len(list(_batches(text.windows))), on_step)
    first: dict[str, list[float]] = {}
    rows = []
    for kv_dtype in settings.kv_dtypes:
        runner = _load(settings, kv_dtype)
        for feed in FEEDS:
            nats = []
            for batch in _batches(text.windows):
                nats += _nats(runner, batch, 1 if feed == "decode" else settings.window + 1)
                steps.end(f"{kv_dtype} {feed}")
            row = {"kv_dtype": kv_dtype, "feed": feed, "kv_bytes_per_token": _per_token(runner)}
            rows.append(row | _account(nats, first.setdefault(feed, nats), text))
    return {
        "model": str(settings.model),
        "num_tokens": text.num_tokens,
        "num_bytes": text.num_bytes,
        "window": settings.window,
        "block_size": settings.block_size,
        "rows": rows,
    }


def read_held_out(settings: PerplexitySettings) -> HeldOut:
    """Raises ConfigError where the text or the model's tokenizer cannot be read."""
    path = settings.text or data_file("tinyshakespeare.txt.gz")
    try:
        text = gzip.decompress(path.read_bytes()).decode()
    except (OSError, EOFError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read: {error}", field="text") from error
    tokenizer_file = settings.model / "tokenizer.json"
    if not tokenizer_file.is_file():
        raise ConfigError(f"{settings.model} has no tokenizer.json", field="model")
    tokenizer = Tokenizer.from_file(str(tokenizer_file))
    prefix = tokenizer.encode("").ids
    token_ids = tokenizer.encode(text[len(text) * 9 // 10 :], add_special_tokens=False).ids
    token_ids = token_ids[: settings.num_tokens or None]
    num_bytes = len(tokenizer.decode(token_ids).encode())
    return HeldOut(_windows(token_ids, prefix, settings.window), len(token_ids), num_bytes)


def _windows(token_ids: Sequence[int], prefix: Sequence[int], size: int) -> list[Window]:
    windows, end = [], 0
    while end < len(token_ids):
        counted_from, end = end, min(max(size, end + size // 2), len(token_ids))
        begin = max(0, end - size)
        at = counted_from - begin + len(prefix)
        windows.append(Window([*prefix, *token_ids[begin:end]], at))
    return windows


def _batches(windows: Sequence[Window]) -> Iterator[Sequence[Window]]:
    remaining = iter(windows)
    while batch := list(islice(remaining, _BATCH)):
        yield batch


def _load(settings: PerplexitySettings, kv_dtype: KvDtype) -> ModelRunner:
    num_blocks = -(-(settings.window + 1) // settings.block_size)
    return ModelRunner.load(
        EngineConfig(
            settings.model,
            device=settings.device,
            kv_dtype=kv_dtype,
            block_size=settings.block_size,
            num_blocks=_BATCH * num_blocks,
        )
    )


def _per_token(runner: ModelRunner) -> float:
    return runner.layout.block_bytes / runner.layout.block_size


def _nats(runner: ModelRunner, windows: Sequence[Window], chunk: int) -> list[float]:
    """Of the counted tokens of each window, fed in steps of `chunk` tokens."""
    num_blocks = runner.num_blocks // _BATCH
    nats = [0.0] * len(windows)
    for start in range(0, max(len(each.token_ids) for each in windows) - 1, chunk):
        slices, of_slice = [], []
        for index, window in enumerate(windows):
            token_ids = window.token_ids[start : min(start + chunk, len(window.token_ids) - 1)]
            if token_ids:
                targets = window.token_ids[start + 1 : start + 1 + len(token_ids)]
                table = range(index * num_blocks, (index + 1) * num_blocks)
                slices.append(Slice(token_ids, start, table, prompt_targets=targets))
                of_slice.append(index)
        found = runner.run(StepPlan(slices)).prompt_logprobs
        for number, index in enumerate(of_slice):
            uncounted = max(0, windows[index].counted_from - start - 1)
            nats[index] -= math.fsum(each.logprob for each in found[number][uncounted:])
    return nats


def _account(nats: Sequence[float], first: Sequence[float], text: HeldOut) -> dict[str, Any]:
    """Nats per window -> perplexity, bits per byte, and how much more than the first dtype's nats: mean
    and 95 % interval, by the normal approximation over windows."""
    per_token = math.fsum(nats) / text.num_tokens
    more = [ours - theirs for ours, theirs in zip(nats, first, strict=True)]
    mean = math.fsum(more) / len(more)
    variance = math.fsum((each - mean) ** 2 for each in more) / max(1, len(more) - 1)
    margin = 1.96 * math.sqrt(variance * len(more)) / text.num_tokens
    added = math.fsum(more) / text.num_tokens
    return {
        "perplexity": math.exp(per_token),
        "bits_per_byte": math.fsum(nats) / text.num_bytes / math.log(2),
        "added_nats_per_token": added,
        "ci95": (added - margin, added + margin),
        "n": len(more),
    }
