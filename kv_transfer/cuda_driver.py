"""CUDA's inter-process memory handles, through the driver (libcuda), whose names and types do not change
between versions of CUDA and torch. Knows addresses, not pools.

Not every allocation can be shared: what torch takes from expandable segments or from cudaMallocAsync has no
handle. One process cannot open what it has exported itself.

Written from the driver's documentation; not run by us.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from baton.errors import ConfigError, PeerLost

_HANDLE_BYTES = 64
_LAZY_ENABLE_PEER_ACCESS = 1


class _Handle(ctypes.Structure):
    """CUipcMemHandle, which is passed by value."""

    _fields_ = (("reserved", ctypes.c_byte * _HANDLE_BYTES),)


class CudaError(Exception):
    """What a call of the driver has answered."""


def export(memory: Tensor) -> tuple[bytes, int]:
    """The handle of the allocation in which `memory` lies, and where in it. ConfigError where it cannot be
    shared."""
    base, size = ctypes.c_uint64(), ctypes.c_size_t()
    handle = _Handle()
    address = ctypes.c_uint64(memory.data_ptr())
    try:
        with _context(memory.device):
            _call("cuMemGetAddressRange_v2", ctypes.byref(base), ctypes.byref(size), address)
            _call("cuIpcGetMemHandle", ctypes.byref(handle), base)
    except CudaError as error:
        raise ConfigError(
            f"this GPU memory cannot be shared ({error}); with expandable segments none can",
            field="transports",
        ) from error
    return bytes(handle), memory.data_ptr() - base.value


class Mapping:
    """Memory that another process has exported, mapped until `close`. PeerLost where it cannot be."""

    def __init__(self, handle: bytes, offset: int, size_bytes: int, device: torch.device) -> None:
        self._device = device
        self._base = ctypes.c_uint64()
        copied = _Handle.from_buffer_copy(handle)
        flags = ctypes.c_uint(_LAZY_ENABLE_PEER_ACCESS)
        try:
            with _context(device):
                _call("cuIpcOpenMemHandle_v2", ctypes.byref(self._base), copied, flags)
        except CudaError as error:
            raise PeerLost(f"cannot map the GPU memory of the peer: {error}") from error
        try:
            mapped = _Mapped(self._base.value + offset, size_bytes)
            self.memory = torch.as_tensor(mapped, device=device)
        except BaseException:
            self._unmap()
            raise

    def close(self) -> None:
        """`memory` is not to be used any more, and nothing queued uses it. To be called once."""
        del self.memory
        self._unmap()

    def _unmap(self) -> None:
        with _context(self._device):
            _call("cuIpcCloseMemHandle", self._base)


class _Mapped:
    """Makes a tensor of an address, by the protocol that array libraries share."""

    def __init__(self, address: int, size_bytes: int) -> None:
        self.__cuda_array_interface__ = {
            "shape": (size_bytes,),
            "typestr": "|u1",
            "data": (address, False),
            "version": 3,
        }


@contextmanager
def _context(device: torch.device) -> Iterator[None]:
    """The context that torch uses on `device`, for this thread's calls of the driver."""
    number, context = ctypes.c_int(), ctypes.c_void_p()
    _call("cuDeviceGet", ctypes.byref(number), ctypes.c_int(device.index or 0))
    _call("cuDevicePrimaryCtxRetain", ctypes.byref(context), number)
    try:
        _call("cuCtxPushCurrent_v2", context)
        try:
            yield
        finally:
            _call("cuCtxPopCurrent_v2", ctypes.byref(ctypes.c_void_p()))
    finally:
        _call("cuDevicePrimaryCtxRelease_v2", number)


def _call(name: str, *arguments: object) -> None:
    """CudaError with CUDA's own name for what went wrong."""
    driver = _driver()
    code = getattr(driver, name)(*arguments)
    if code:
        text = ctypes.c_char_p()
        driver.cuGetErrorName(code, ctypes.byref(text))
        raise CudaError(f"{name}: {(text.value or b'unknown').decode()} ({code})")


@functools.cache
def _driver() -> ctypes.CDLL:
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError as error:
        raise CudaError(f"no driver: {error}") from error
    if code := driver.cuInit(0):
        raise CudaError(f"cuInit: {code}")
    return driver
