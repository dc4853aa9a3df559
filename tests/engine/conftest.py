"""Checkpoints and reference models, made once per session and kind."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

import baton.engine.kernels
import baton.engine.numerics
from tests.checkpoints import make_checkpoint

Checkpoints = Callable[..., Path]
transformers.utils.logging.disable_progress_bar()


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoints:
    """checkpoint(family, **quirks) -> folder; the same arguments give the same folder."""
    made: dict[str, Path] = {}

    def get(family: str, **quirks: Any) -> Path:
        key = f"{family} {sorted(quirks.items(), key=repr)}"
        if key not in made:
            made[key] = make_checkpoint(tmp_path_factory.mktemp(family), family, **quirks)
        return made[key]

    return get


@pytest.fixture(scope="session")
def reference() -> Callable[[Path], Any]:
    """reference(folder) -> transformers' model in fp32, whatever the checkpoint's dtype."""

    @cache
    def load(folder: Path) -> Any:
        return transformers.AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, attn_implementation="eager"
        ).eval()

    return load


@pytest.fixture(params=["compiled", "torch"])
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs a test with the engine's own kernels, and again as on a machine without a compiler."""
    if request.param == "torch":
        monkeypatch.setattr(baton.engine.numerics, "load_kernels", lambda: None)
    elif baton.engine.kernels.load() is None:
        pytest.skip("no C compiler")
