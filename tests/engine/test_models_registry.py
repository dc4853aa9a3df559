"""The seam for families: what a new dense one takes is a file like llama.py and a line in the registry."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

from baton.engine import models
from baton.engine.models.registry import (
    FAMILIES,
    expected_tensors,
    ignored_tensors,
    read_model_config,
)

FOLDER = Path(models.__path__[0])


def test_a_family_is_one_file_and_one_line() -> None:
    """No other module of the engine names a family's architecture or asks which one it has."""
    for architecture in FAMILIES:
        word = architecture.removesuffix("ForCausalLM").lower()
        naming = {
            path.relative_to(FOLDER.parent).as_posix()
            for path in FOLDER.parent.rglob("*.py")
            if re.search(rf"\b({word}|{architecture})\b", path.read_text().partition('"""\n')[2])
        }
        qwen3_reads_windows_as_qwen2 = {"models/qwen3.py"} if word == "qwen2" else set()
        assert naming <= {
            f"models/{word}.py",
            "models/registry.py",
            "models/shapes.py",  # named shapes of one family each
            *qwen3_reads_windows_as_qwen2,
        }


def test_every_family_tells_its_tensors(checkpoint: Callable[..., Path]) -> None:
    for architecture in FAMILIES:
        folder = checkpoint(architecture.removesuffix("ForCausalLM").lower())
        config = read_model_config(folder)
        assert config.architecture == architecture
        index = json.loads((folder / "config.json").read_text())
        assert config.num_layers == index["num_hidden_layers"]
        assert not set(expected_tensors(config)) & ignored_tensors(config)
