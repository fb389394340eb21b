"""The NVIDIA GPUs that CUDA sees, asked of the driver itself: needs no package.

NVML (nvidia-ml-py) would also list those that CUDA_VISIBLE_DEVICES hides, in an order of its own:
TensorRT would be chosen where it cannot run, and a plan's record would name another GPU.
"""

import ctypes
from dataclasses import dataclass
from typing import Any, Final

_DRIVER: Final = "libcuda.so.1"
# CUdevice_attribute: CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR (cuda.h).
_CAPABILITY_MAJOR: Final = 75
_CAPABILITY_MINOR: Final = 76
_NAME_BYTES: Final = 256


@dataclass(frozen=True)
class Gpu:
    """One GPU.

    Attributes:
        name: as the driver states it, for instance "NVIDIA L4".
        capability: compute capability, for instance "8.9".
        memory: bytes in all.
        cuda: newest CUDA version that the driver supports, for instance "13.4".
    """

    name: str
    capability: str
    memory: int
    cuda: str


def find(driver: str = _DRIVER) -> list[Gpu]:
    """The GPUs that the CUDA driver lists; none where there is no driver or no GPU."""
    try:
        cuda = ctypes.CDLL(driver)
    except OSError:
        return []
    if cuda.cuInit(0) != 0:
        return []
    count = _integer(cuda.cuDeviceGetCount)
    version = _integer(cuda.cuDriverGetVersion)
    return [
        _gpu(cuda, index, f"{version // 1000}.{version % 1000 // 10}") for index in range(count)
    ]


def _gpu(cuda: Any, index: int, version: str) -> Gpu:
    device = ctypes.c_int()
    _check(cuda.cuDeviceGet(ctypes.byref(device), index))
    name = ctypes.create_string_buffer(_NAME_BYTES)
    _check(cuda.cuDeviceGetName(name, _NAME_BYTES, device))
    memory = ctypes.c_size_t()
    _check(cuda.cuDeviceTotalMem_v2(ctypes.byref(memory), device))
    major, minor = (
        _integer(cuda.cuDeviceGetAttribute, ctypes.c_int(attribute), device)
        for attribute in (_CAPABILITY_MAJOR, _CAPABILITY_MINOR)
    )
    return Gpu(name.value.decode(), f"{major}.{minor}", memory.value, version)


def _integer(function: Any, *arguments: Any) -> int:
    value = ctypes.c_int()
    _check(function(ctypes.byref(value), *arguments))
    return value.value


def _check(status: int) -> None:
    if status != 0:
        raise OSError(f"the CUDA driver answered with error {status}")
