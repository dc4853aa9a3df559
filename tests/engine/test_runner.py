"""Step plans through the runner: draws, forks, copies, the layer hook, the cache, and bad plans."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from baton.engine.config import EngineConfig
from baton.engine.kv_cache import KvCache, KvCacheLayout
from baton.engine.runner import ModelRunner
from baton.errors import ConfigError
from baton.scheduling.step_plan import NewSample, Slice, StepPlan
from tests.engine.harness import GREEDY, Driver, prompt_tokens

PROMPT = prompt_tokens(40)


@pytest.fixture
def folder(checkpoint: Callable[..., Path]) -> Path:
    return checkpoint("llama")


@pytest.fixture
def driver(folder: Path) -> Driver:
    return Driver(folder, dtype="fp32", max_model_len=200)


def test_draws_follow_the_order_of_the_slices(driver: Driver) -> None:
    """Two prompts; one slice draws nothing, one draws for two samples of one prompt."""
    other = prompt_tokens(20, seed=5)
    tables = [driver.table(40), driver.table(20), driver.table(20)]
    driver.run(added=[NewSample(h, 0, GREEDY, PROMPT, ()) for h in (7, 3, 9)])
    output = driver.run(
        Slice(other, 0, tables[1], draws=(7, 3)),
        Slice(other, 0, tables[2]),
        Slice(PROMPT, 0, tables[0], draws=(9,)),
    )
    assert [drawn.handle for drawn in output.drawn] == [7, 3, 9]
    first, second, third = (drawn.token_id for drawn in output.drawn)
    logits = driver.logits(Slice(other, 0, tables[1]), Slice(PROMPT, 0, tables[0]))
    assert first == second == int(logits[0][-1].argmax())
    assert third == int(logits[1][-1].argmax())
    assert output.elapsed_s > 0


def test_prompt_logprobs_are_those_of_the_rows(driver: Driver) -> None:
    """More rows than are computed at a time, beside a slice that asks for none."""
    prompt = prompt_tokens(150)
    tables = driver.table(150), driver.table(40)
    output = driver.run(
        Slice(PROMPT, 0, tables[1]),
        Slice(prompt, 0, tables[0], prompt_targets=prompt[1:], prompt_top=2),
    )
    assert output.prompt_logprobs.keys() == {1}
    logprobs = driver.prefill_logits(prompt, tables[0]).log_softmax(-1)
    found = output.prompt_logprobs[1]
    assert [entry.token_id for entry in found] == prompt[1:]
    for row, entry in zip(logprobs, found, strict=False):
        assert entry.logprob == pytest.approx(float(row[entry.token_id]), abs=1e-4)
        assert [token_id for token_id, _ in entry.top] == row.topk(2).indices.tolist()


@pytest.mark.parametrize("kv_dtype", ["fp32", "int8", "fp8"])
def test_fork_by_copied_block_leaves_the_source_alone(folder: Path, kv_dtype: str) -> None:
    """Two continuations of one prompt share its full blocks; the partial one is copied first, with the
    scale that it has if it is quantized."""
    driver = Driver(folder, dtype="fp32", kv_dtype=kv_dtype)
    table = driver.table(48)
    driver.run(Slice(PROMPT, 0, table))
    fork = [*table[:2], *driver.table(16)]
    driver.run(Slice([1, 2, 3], 40, fork), copies=[(table[2], fork[2])])
    found = driver.logits(Slice([9], 40, table), Slice([4], 43, fork))
    expected = [
        driver.prefill_logits([*PROMPT, 9], driver.table(41))[-1:],
        driver.prefill_logits([*PROMPT, 1, 2, 3, 4], driver.table(44))[-1:],
    ]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_layer_hook_sees_each_layer_written_in_order(driver: Driver) -> None:
    table = driver.table(40)
    runner, written = driver.runner, []

    def on_layer(layer: int) -> None:
        layers = runner.kv_cache.layers
        written.append((layer, [bool(each.values[table].any()) for each in layers]))

    runner.run(StepPlan([Slice(PROMPT, 0, table)]), on_layer=on_layer)
    assert written == [
        (0, [True, False, False]),
        (1, [True, True, False]),
        (2, [True, True, True]),
    ]


def test_step_writes_only_its_own_slots(driver: Driver) -> None:
    layers = driver.runner.kv_cache.layers
    before = [layer.values.fill_(7.0).clone() for layer in layers]
    table = driver.table(48)
    driver.run(Slice(PROMPT, 0, table))
    for layer, values in zip(layers, before, strict=True):
        assert not torch.equal(layer.values[table], values[table])
        layer.values[table[:2]] = 7.0
        layer.values[table[2], :, :, :8] = 7.0
        assert torch.equal(layer.values, values)


@pytest.mark.parametrize("kv_dtype", ["fp32", "fp16", "int8", "fp8"])
def test_stale_contents_of_a_block_do_not_matter(
    folder: Path, backend: None, kv_dtype: str
) -> None:
    """Blocks are reused without being cleared, and an old value or scale may be NaN."""
    driver = Driver(folder, dtype="fp32", kv_dtype=kv_dtype)
    prompts = [prompt_tokens(n, seed=2) for n in (5, 20, 21)]
    clean = driver.generate(prompts, 6)
    driver.runner.kv_cache.buffer.fill_(0xFF)
    assert driver.generate(prompts, 6) == clean


def test_no_more_positions_are_prepared_than_the_pool_can_hold(
    checkpoint: Callable[..., Path],
) -> None:
    """Of a context of ten million tokens the tables alone would take gigabytes."""
    folder = checkpoint("llama", max_position_embeddings=10_000_000)
    runner = ModelRunner.load(EngineConfig(folder, block_size=16, num_blocks=10))
    assert runner.max_model_len == 160
    assert runner.decoder.layers[0].attention.rotary.cos.shape[0] == 160


def test_cache_lies_in_a_given_buffer(folder: Path) -> None:
    layout = KvCacheLayout(num_layers=3, num_kv_heads=2, block_size=16, head_dim=16, dtype="fp16")
    buffer = torch.zeros(layout.size_bytes(5), dtype=torch.uint8)
    config = EngineConfig(folder, block_size=16, num_blocks=5, kv_dtype="fp16")
    runner = ModelRunner.load(config, allocate=lambda size_bytes: buffer[:size_bytes])
    assert runner.layout == layout
    runner.run(StepPlan([Slice(PROMPT[:20], 0, [4, 2])]))
    begin = 4 * layout.layer_block_bytes  # layer 0 of block 4
    assert buffer[begin : begin + layout.layer_block_bytes].any()
    assert not buffer[: 2 * layout.layer_block_bytes].any()
    assert layout.layer_block_bytes == 2 * 2 * 16 * 16 * 2
    with pytest.raises(ConfigError, match="5"):
        KvCache(layout, 5, buffer=buffer[:-1])


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"kv_cache_bytes": 1000}, "kv_cache_bytes"),
        ({"kv_cache_bytes": 1 << 60}, "kv_cache_bytes"),
        ({"num_blocks": -1}, "num_blocks"),
        ({"block_size": 0}, "block_size"),
        ({"num_threads": -2}, "num_threads"),
        ({"max_model_len": 5000}, "max_model_len"),
        ({"max_model_len": -1}, "max_model_len"),
        ({"device": "tpu9"}, "device"),
        ({"device": "meta"}, "device"),
        ({"dtype": "bf16"}, "dtype"),
        ({"kv_dtype": "bf16"}, "kv_dtype"),
        ({"dtype": "fp16", "deterministic": True}, "dtype"),
        ({"kv_dtype": "int8", "deterministic": True}, "kv_dtype"),
        ({"kv_dtype": "fp8", "deterministic": True}, "kv_dtype"),
    ],
)
def test_unfit_settings_are_named(folder: Path, settings: dict[str, Any], field: str) -> None:
    with pytest.raises(ConfigError) as caught:
        ModelRunner.load(EngineConfig(folder, **settings))
    assert caught.value.field == field


GOOD = Slice(tuple(PROMPT), 0, (0, 1, 2))


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"token_ids": ()}, "0 tokens"),
        ({"token_ids": (320,)}, "vocabulary"),
        ({"token_ids": (-1,)}, "vocabulary"),
        ({"start": 9}, "cover position 48"),
        ({"start": -1}, "max_model_len"),
        ({"start": 161, "block_table": (0,) * 20}, "max_model_len 200"),
        ({"block_table": (0, 1, 128)}, "block outside"),
        ({"block_table": (0, -1, 2)}, "block outside"),
        ({"block_table": ()}, "cover"),
        ({"prompt_targets": (1,) * 41}, "targets"),
    ],
)
def test_plan_that_would_corrupt_memory_is_refused(
    driver: Driver, changes: dict[str, Any], problem: str
) -> None:
    before = driver.runner.kv_cache.buffer.clone()
    output = driver.run(GOOD, dataclasses.replace(GOOD, **changes))
    assert not output.computed
    assert list(output.failed_slices) == [1]
    assert problem in str(output.failed_slices[1])
    assert torch.equal(driver.runner.kv_cache.buffer, before)
    assert driver.run(GOOD).computed


@pytest.mark.parametrize("bad", [[1], [0, 1, 2]])
def test_logits_that_are_no_numbers_fail_their_samples_alone(folder: Path, bad: list[int]) -> None:
    """Also where no sample is left, and for a prompt's log-probabilities."""
    driver, poison = Driver(folder), 319
    with torch.inference_mode():
        driver.runner.decoder.embeddings[poison] = torch.nan
    prompts = [[*PROMPT, poison, 5] if index in bad else PROMPT for index in range(3)]
    slices = [
        Slice(prompt, 0, driver.table(len(prompt)), (2 * index, 2 * index + 1), prompt[1:])
        for index, prompt in enumerate(prompts)
    ]
    added = [NewSample(handle, handle % 2, GREEDY, prompts[handle // 2], ()) for handle in range(6)]
    output = driver.run(*slices, added=added)
    good = [index for index in range(3) if index not in bad]
    assert [drawn.handle // 2 for drawn in output.drawn] == [i for i in good for _ in range(2)]
    assert [handle // 2 for handle, _ in output.failed] == [i for i in bad for _ in range(2)]
    assert list(output.failed_slices) == bad
    assert list(output.prompt_logprobs) == good
    if good:
        (clean,) = Driver(folder).logits(dataclasses.replace(slices[0], draws=()))
        assert output.drawn[0].token_id == int(clean[-1].argmax())


def test_fp16_cache_is_close_to_fp32(folder: Path) -> None:
    exact, halved = (
        driver.prefill_logits(PROMPT, driver.table(40))
        for driver in (Driver(folder, dtype="fp32", kv_dtype=kind) for kind in ("fp32", "fp16"))
    )
    difference = (exact - halved).abs().max()
    assert 0 < difference < 1e-2
