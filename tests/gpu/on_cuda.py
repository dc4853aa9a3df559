"""The tests of all transports, for CUDA IPC. A module here takes those of one module: fixtures of several
have the same names."""

import pytest

ON_CUDA = pytest.mark.parametrize("kind", [pytest.param("cuda_ipc", marks=pytest.mark.gpu)])
