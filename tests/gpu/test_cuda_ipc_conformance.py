"""CUDA IPC: what every transport guarantees."""

from tests.gpu.on_cuda import ON_CUDA
from tests.transfer.test_conformance import *  # noqa: F403

pytestmark = ON_CUDA
