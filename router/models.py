"""The models this router serves, by name: their text side and what the workers say they can take."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from baton.errors import Unavailable, UnknownModel
from baton.types import Fingerprint, Role, WorkerInfo
from router.frontend import ModelCard
from router.routing.pools import Pools
from router.text.model_text import ModelText
from router.validation import ModelLimits

_DTYPE_BYTES = {"fp32": 4, "fp16": 2, "bf16": 2, "int8": 1, "fp8": 1}
_SCALE_BYTES = {"int8": 8, "fp8": 8}  # of k or v of one head in one block


@dataclass(frozen=True, slots=True)
class ServedModel:
    """A model as a request meets it. `fingerprints`: one for each set of weights that its decode workers
    have, the longest known first; there are several while a model is updated."""

    name: str
    text: ModelText | None
    limits: ModelLimits
    fingerprints: tuple[Fingerprint, ...]


def kv_bytes_per_token(layout: Fingerprint) -> float:
    scale = _SCALE_BYTES.get(layout.kv_dtype, 0) / layout.block_size
    head = layout.head_dim * _DTYPE_BYTES[layout.kv_dtype] + scale
    return 2 * layout.num_layers * layout.num_kv_heads * head


@dataclass(slots=True)
class Models:
    """A model is served while at least one decode worker of its name is alive; without one it stays known,
    since workers come back. `texts`: the folders' tokenizers; a model without one takes token ids only."""

    texts: Mapping[str, ModelText]
    pools: Pools
    created_unix_s: int = field(default_factory=lambda: int(time.time()))
    _served: dict[str, ServedModel | None] = field(default_factory=dict)  # as of `_version`
    _version: int = -1

    @classmethod
    def load(cls, folders: Mapping[str, Path], pools: Pools) -> Models:
        return cls({name: ModelText.load(folder) for name, folder in folders.items()}, pools)

    def names(self) -> list[str]:
        """The configured models, then those that workers brought."""
        return list(self._known())

    def cards(self) -> list[ModelCard]:
        return [
            ModelCard(
                name, model.limits.max_model_len, model.limits.vocab_size, self.created_unix_s
            )
            for name, model in self._known().items()
            if model
        ]

    def get(self, name: str) -> ServedModel:
        """The model called `name`; the only one where `name` is empty. Raises UnknownModel, and Unavailable
        where it has no worker now."""
        known = self._known()
        if not known:
            raise Unavailable("no worker is up", retry_after_s=1.0)
        if not name:
            usual = [each for each in known if known[each] or each in self.texts] or list(known)
            if len(usual) != 1:
                raise UnknownModel(f"must be one of {sorted(usual)}", field="model")
            (name,) = usual
        if name not in known:
            raise UnknownModel(f"{name!r} is not served; there are {sorted(known)}", field="model")
        served = known[name]
        if served is None:
            raise Unavailable(f"no worker of model {name!r} is up", retry_after_s=1.0)
        return served

    def fingerprints(self, name: str) -> tuple[Fingerprint, ...]:
        """Of each set of weights with which the model called `name` is served now."""
        served = self._known().get(name)
        return served.fingerprints if served else ()

    def _known(self) -> Mapping[str, ServedModel | None]:
        """All models by name. Every request asks, so it is found out only when workers change."""
        if self._version != self.pools.version:
            brought = (name for name in self.pools.models() if self._decode_workers(name))
            names = dict.fromkeys((*self.texts, *self._served, *brought))
            self._served = {name: self._find(name) for name in names}
            self._version = self.pools.version
        return self._served

    def _decode_workers(self, name: str) -> list[WorkerInfo]:
        return [pool.worker for pool in self.pools.of(Role.DECODE, name)]

    def _find(self, name: str) -> ServedModel | None:
        """None while no worker of the model is alive (a draining one still says what it is)."""
        workers = self._decode_workers(name)
        if not workers:
            return None
        max_model_len = min(worker.max_model_len for worker in workers)
        text = self.texts.get(name)
        if text is not None:
            limits = text.limits(max_model_len)
        else:
            vocab_size = min(worker.vocab_size for worker in workers)
            limits = ModelLimits(vocab_size, max_model_len, has_text=False)
        by_identity = {each.fingerprint.identity: each.fingerprint for each in reversed(workers)}
        return ServedModel(name, text, limits, tuple(reversed(by_identity.values())))
