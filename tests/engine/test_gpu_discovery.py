"""Reading GPUs from the driver: a stand-in driver compiled on the spot, and none at all."""

import shutil
import subprocess
from pathlib import Path

import pytest

from unified_embedding.engine.tensorrt import gpu

DRIVER = """
#include <string.h>
#include <stddef.h>
int cuInit(unsigned flags) { return INIT; }
int cuDeviceGetCount(int *count) { *count = 2; return 0; }
int cuDriverGetVersion(int *version) { *version = 13040; return 0; }
int cuDeviceGet(int *device, int ordinal) { *device = ordinal + 10; return 0; }
int cuDeviceGetName(char *name, int length, int device) {
    strncpy(name, device == 10 ? "NVIDIA L4" : "NVIDIA H100 80GB HBM3", length);
    return 0;
}
int cuDeviceTotalMem_v2(size_t *bytes, int device) { *bytes = (size_t)24 << 30; return 0; }
int cuDeviceGetAttribute(int *value, int attribute, int device) {
    *value = attribute == 75 ? (device == 10 ? 8 : 9) : (device == 10 ? 9 : 0);
    return 0;
}
"""


def driver(folder: Path, status: int) -> str:
    path = folder / "libcuda.so.1"
    command = ["cc", "-shared", "-fPIC", f"-DINIT={status}", "-x", "c", "-", "-o", str(path)]
    subprocess.run(command, input=DRIVER, text=True, check=True)
    return str(path)


@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")
def test_every_gpu_is_described(tmp_path: Path) -> None:
    first, second = gpu.find(driver(tmp_path, 0))
    assert first == gpu.Gpu("NVIDIA L4", "8.9", 24 << 30, "13.4")
    assert (second.name, second.capability) == ("NVIDIA H100 80GB HBM3", "9.0")


@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")
def test_a_driver_without_a_gpu_lists_none(tmp_path: Path) -> None:
    no_device = 100  # CUDA_ERROR_NO_DEVICE
    assert gpu.find(driver(tmp_path, no_device)) == []


def test_no_driver_is_no_gpu(tmp_path: Path) -> None:
    assert gpu.find(str(tmp_path / "libcuda.so.1")) == []
