"""Every family that the engine serves. An architecture that is not listed is refused, never guessed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from baton.engine.models import llama, mistral, qwen2, qwen3
from baton.engine.models.config import ModelConfig
from baton.engine.models.decoder import Decoder
from baton.engine.models.family import Family
from baton.engine.models.json_fields import JsonFields, read_json
from baton.engine.models.loader import Numerics, Progress, WeightLoader
from baton.engine.weights import WeightSource

FAMILIES: Mapping[str, Family[Any]] = {
    family.architecture: family
    for family in (llama.FAMILY, mistral.FAMILY, qwen2.FAMILY, qwen3.FAMILY)
}


def read_model_config(folder: Path) -> ModelConfig:
    """Reads `config.json` of a Hugging Face checkpoint folder."""
    path = folder / "config.json"
    fields = JsonFields(path, read_json(path))
    names = fields.get("architectures")
    if not isinstance(names, list) or len(names) != 1 or names[0] not in FAMILIES:
        raise fields.fail("architectures", f"must be one of {', '.join(FAMILIES)}, found {names!r}")
    config: ModelConfig = FAMILIES[names[0]].read(fields)
    return config


def expected_tensors(config: ModelConfig) -> Mapping[str, tuple[int, ...]]:
    """Name -> shape of every tensor that the checkpoint must hold."""
    return FAMILIES[config.architecture].tensors(config)


def ignored_tensors(config: ModelConfig) -> frozenset[str]:
    """Tensors that a checkpoint may hold beside the expected ones."""
    return FAMILIES[config.architecture].ignored(config)


def build_decoder(
    config: ModelConfig,
    source: WeightSource,
    numerics: Numerics,
    max_model_len: int,
    progress: Progress | None = None,
) -> Decoder:
    """Reads, converts and packs every tensor once; holds one of them at a time."""
    loader = WeightLoader(source, expected_tensors(config), numerics, progress)
    return FAMILIES[config.architecture].build(config, loader, max_model_len)
