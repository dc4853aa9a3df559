"""Checkpoints on disk: what is read, what it costs in memory, and what is refused by name."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from baton.engine.config import EngineConfig
from baton.engine.dummy_weights import DummyWeights, elements
from baton.engine.models.registry import expected_tensors, read_model_config
from baton.engine.models.shapes import SHAPES
from baton.engine.runner import ModelRunner
from baton.errors import ConfigError
from tests.checkpoints import copy_checkpoint, edit_config
from tests.engine.harness import Driver, prompt_tokens

ROOT = Path(__file__).parents[2]


@pytest.fixture
def folder(checkpoint: Callable[..., Path], tmp_path: Path) -> Path:
    """A copy, in one file, that a test may damage."""
    return copy_checkpoint(checkpoint("llama"), tmp_path / "copy")


@pytest.fixture
def sharded(checkpoint: Callable[..., Path], tmp_path: Path) -> Path:
    return copy_checkpoint(checkpoint("llama", max_shard_size="50KB"), tmp_path / "sharded")


def load(folder: Path, **settings: Any) -> ModelRunner:
    chosen: dict[str, Any] = {"num_blocks": 4, "dtype": "fp32"} | settings
    return ModelRunner.load(EngineConfig(folder, **chosen))


def refusal(folder: Path, **settings: Any) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        load(folder, **settings)
    return caught.value


def change_tensors(folder: Path, **changes: torch.Tensor | None) -> None:
    """Replaces tensors (a name's dots written as `__`); None removes one."""
    path = folder / "model.safetensors"
    tensors = {name: tensor.clone() for name, tensor in load_file(path).items()}
    for name, tensor in changes.items():
        if tensor is None:
            del tensors[name.replace("__", ".")]
        else:
            tensors[name.replace("__", ".")] = tensor
    save_file(tensors, path, metadata={"format": "pt"})


def test_shards_and_one_file_give_the_same_logits(folder: Path, sharded: Path) -> None:
    assert len(list(sharded.glob("*.safetensors"))) > 3
    prompt = prompt_tokens(30)
    one, many = (d.prefill_logits(prompt, d.table(30)) for d in map(Driver, (folder, sharded)))
    assert torch.equal(one, many)


def test_progress_reaches_the_total(folder: Path) -> None:
    seen: list[tuple[int, int]] = []
    ModelRunner.load(EngineConfig(folder, num_blocks=4), progress=lambda *at: seen.append(at))
    total_bytes = sum(
        4 * tensor.numel() for tensor in load_file(folder / "model.safetensors").values()
    )
    assert seen == sorted(seen)
    assert len(seen) > 20
    assert seen[-1] == (total_bytes, total_bytes)


def test_identity_follows_content_not_place(folder: Path, checkpoint: Callable[..., Path]) -> None:
    identity = load(folder).identity
    assert identity == load(checkpoint("llama")).identity
    assert identity == load(folder, dtype="fp16").identity
    norm = load_file(folder / "model.safetensors")["model.norm.weight"].clone()
    norm[3] += 1
    change_tensors(folder, model__norm__weight=norm)
    assert load(folder).identity != identity
    assert load(checkpoint("llama", seed=1)).identity != identity


def test_missing_files_are_named(folder: Path, sharded: Path, tmp_path: Path) -> None:
    second = sorted(sharded.glob("*.safetensors"))[1]
    second.unlink()
    assert second.name in str(refusal(sharded))
    (folder / "model.safetensors").unlink()
    assert "model.safetensors" in str(refusal(folder))
    (folder / "config.json").unlink()
    assert "config.json" in str(refusal(folder))
    error = refusal(tmp_path / "nowhere")
    assert error.field == "model"
    assert "nowhere" in str(error)


def test_a_whole_file_goes_before_an_index_that_was_left(folder: Path, sharded: Path) -> None:
    index = "model.safetensors.index.json"
    shutil.copy(sharded / index, folder / index)
    assert load(folder).identity


@pytest.mark.parametrize("kept", [0, 5, 8, 300, 5000, -4])
def test_truncated_file_is_named(folder: Path, kept: int) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:kept])
    error = refusal(folder)
    assert error.field == "model.safetensors"
    assert str(path) in str(error)


def test_garbage_is_no_safetensors_file(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"\x10" + bytes(7) + b"not json at all!" + bytes(99))
    assert "header" in str(refusal(folder))


def test_missing_tensor_is_named_with_its_shape(folder: Path) -> None:
    name = "model.layers.1.mlp.up_proj.weight"
    change_tensors(folder, **{name.replace(".", "__"): None})
    error = refusal(folder)
    assert error.field == name
    assert "(112, 64)" in str(error)


def test_wrong_shape_is_named_with_both_shapes(folder: Path) -> None:
    edit_config(folder, intermediate_size=120)
    error = refusal(folder)
    assert error.field.startswith("model.layers.0.mlp.")
    assert "112" in str(error)
    assert "120" in str(error)


def test_tensor_that_nothing_uses_is_refused(folder: Path) -> None:
    """A bias that config.json does not speak of would otherwise be left out silently."""
    change_tensors(folder, model__layers__0__self_attn__q_proj__bias=torch.ones(64))
    assert refusal(folder).field == "model.layers.0.self_attn.q_proj.bias"


def test_tied_checkpoint_may_carry_its_head(
    checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    folder = copy_checkpoint(checkpoint("llama", tie_word_embeddings=True), tmp_path / "copy")
    change_tensors(folder, lm_head__weight=torch.zeros(320, 64))
    load(folder)


@pytest.mark.parametrize("value", [70000.0, -1e6, float("nan"), float("inf")])
def test_value_beyond_fp16_is_refused_by_name(folder: Path, value: float) -> None:
    name = "model.layers.2.self_attn.k_proj.weight"
    weight = load_file(folder / "model.safetensors")[name].clone()
    weight[5, 7] = value
    change_tensors(folder, **{name.replace(".", "__"): weight})
    error = refusal(folder, dtype="fp16")
    assert error.field == name
    assert "fp32" in str(error)
    load(folder, dtype="fp32")


def test_integer_tensor_is_refused(folder: Path) -> None:
    change_tensors(folder, model__norm__weight=torch.ones(64, dtype=torch.int8))
    assert refusal(folder).field == "model.norm.weight"


MEASURE_PEAK = """
import sys
from pathlib import Path
from baton.engine.config import EngineConfig
from baton.engine.runner import ModelRunner

def peak_bytes():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM"))

ModelRunner.load(EngineConfig(sys.argv[1], num_blocks=1))
before = peak_bytes()
ModelRunner.load(EngineConfig(sys.argv[2], num_blocks=1))
print(peak_bytes() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc")
def test_loading_needs_the_packed_weights_and_one_tensor(
    checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    """Holding the 260 MB checkpoint beside its packed half would take 390 MB."""
    folder = copy_checkpoint(checkpoint("llama"), tmp_path / "large")
    # Widths that are multiples of 512: FBGEMM pads each pack to that.
    edit_config(folder, num_hidden_layers=10, hidden_size=512, intermediate_size=4096)
    expected = expected_tensors(read_model_config(folder))
    tensors = {name: torch.zeros(shape) for name, shape in expected.items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    file_bytes = (folder / "model.safetensors").stat().st_size
    assert file_bytes > 250e6
    command = [sys.executable, "-c", MEASURE_PEAK, str(checkpoint("llama")), str(folder)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    largest_fused_bytes = 2 * 4096 * 512 * 4
    peak_bytes = int(result.stdout)
    assert file_bytes / 2 < peak_bytes < file_bytes / 2 + 3 * largest_fused_bytes + 24e6


def test_dummy_weights_are_a_function_of_name_and_index() -> None:
    source = DummyWeights({"a.weight": (300, 500), "b.weight": (300, 500), "norm.weight": (9,)})
    weight = source.read("a.weight")
    assert torch.equal(
        elements("a.weight", 500, 70_001, 1234), weight.flatten()[70_001 : 70_001 + 1234]
    )
    assert not torch.equal(weight, source.read("b.weight"))
    assert torch.equal(source.read("norm.weight"), torch.ones(9))
    assert abs(float(weight.mean())) < 5e-4
    assert float(weight.std()) == pytest.approx(500**-0.5, rel=0.01)
    columns = torch.corrcoef(weight[:, :50].T) - torch.eye(50)
    assert float(columns.abs().max()) < 0.3


def test_published_shape_has_its_published_size() -> None:
    def num_parameters(name: str) -> int:
        return sum(torch.Size(shape).numel() for shape in expected_tensors(SHAPES[name]).values())

    assert num_parameters("qwen2.5-0.5b") == 494_032_768
    assert 120e6 < num_parameters("llama-125m") < 130e6


def test_dummy_of_a_folder_needs_only_its_config(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    runner, again = load(folder, load_format="dummy"), load(folder, load_format="dummy")
    assert runner.identity == again.identity
    assert runner.model_config.hidden_size == 64


def test_unknown_shape_lists_the_known() -> None:
    with pytest.raises(ConfigError, match="llama-125m"):
        ModelRunner.load(EngineConfig("gpt-7", load_format="dummy"))


def test_index_that_maps_nothing_is_refused(sharded: Path) -> None:
    index = sharded / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}}))
    assert refusal(sharded).field == "weight_map"
