"""CUDA IPC between processes: bytes through a real handle, and peers that are killed or stopped."""

from tests.gpu.on_cuda import ON_CUDA
from tests.transfer.test_peer_death import *  # noqa: F403

pytestmark = ON_CUDA
