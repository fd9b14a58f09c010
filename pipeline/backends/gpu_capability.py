"""The compute capability of the GPU that TensorRT takes, asked of the driver itself: a deployment host has no more."""

from __future__ import annotations

import ctypes

_DRIVER = "libcuda.so.1"
_MAJOR, _MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR of cuda.h


def visible_capability() -> str | None:
    """That of the first GPU that this process sees, as `sm89`; None where there is no GPU or no driver."""
    try:
        cuda = ctypes.CDLL(_DRIVER)
    except OSError:
        return None
    device = ctypes.c_int()
    if cuda.cuInit(0) or cuda.cuDeviceGet(ctypes.byref(device), 0):
        return None
    found = ctypes.c_int()
    sides = []
    for attribute in (_MAJOR, _MINOR):
        if cuda.cuDeviceGetAttribute(ctypes.byref(found), attribute, device):
            return None
        sides.append(found.value)
    return f"sm{sides[0]}{sides[1]}"
