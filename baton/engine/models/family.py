"""The seam for model families: what the engine asks of each. `registry.py` lists them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

from baton.engine.models.config import ModelConfig
from baton.engine.models.decoder import Decoder
from baton.engine.models.json_fields import JsonFields
from baton.engine.models.loader import WeightLoader

Config = TypeVar("Config", bound=ModelConfig)


@dataclass(frozen=True, slots=True)
class Family(Generic[Config]):
    """One architecture, by the name that `config.json` gives it under `architectures`.

    `read`: its configuration out of `config.json`. `tensors`: name -> shape of every tensor that a
    checkpoint must hold. `ignored`: names that one may hold besides. `build`: a decoder for positions
    below the given number, of weights that the loader reads.
    """

    architecture: str
    read: Callable[[JsonFields], Config]
    tensors: Callable[[Config], Mapping[str, tuple[int, ...]]]
    ignored: Callable[[Config], frozenset[str]]
    build: Callable[[Config, WeightLoader, int], Decoder]
