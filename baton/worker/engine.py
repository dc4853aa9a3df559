"""A loaded engine whose KV pool other workers can reach: worker hands the tensors across."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from baton.engine.config import EngineConfig
from baton.engine.runner import ModelRunner
from kv_transfer.layout import PoolLayout
from kv_transfer.pool import Pool
from kv_transfer.shm import SharedMemory


@dataclass(frozen=True, slots=True)
class LoadedEngine:
    """`shared`: the memory in which the KV pool lies, where other processes can map it."""

    runner: ModelRunner
    shared: SharedMemory | None

    @staticmethod
    def load(
        config: EngineConfig, progress: Callable[[int, int], None] | None = None
    ) -> LoadedEngine:
        """Loads the model. In host memory its KV pool is shared memory."""
        if not config.device.startswith("cpu"):
            return LoadedEngine(ModelRunner.load(config, progress), None)
        allocated: list[SharedMemory] = []

        def allocate(size_bytes: int) -> Tensor:
            allocated.append(SharedMemory(size_bytes))
            return allocated[0].memory

        return LoadedEngine(ModelRunner.load(config, progress, allocate), allocated[0])

    def pool(self) -> Pool:
        """The KV cache as the hand-off sees it."""
        runner, layout = self.runner, self.runner.layout
        return Pool(
            PoolLayout(
                num_layers=layout.num_layers,
                num_blocks=runner.num_blocks,
                num_kv_heads=layout.num_kv_heads,
                block_size=layout.block_size,
                head_dim=layout.head_dim,
                dtype=layout.dtype,
            ),
            runner.kv_cache.buffer,
        )
