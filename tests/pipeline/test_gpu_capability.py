from __future__ import annotations

import ctypes

import pytest

from vsfix.pipeline.backends.gpu_capability import visible_capability


class Driver:
    """A libcuda with one GPU; each of its calls may fail."""

    def __init__(self, fails: str = "") -> None:
        for name in ("cuInit", "cuDeviceGet", "cuDeviceGetAttribute"):
            setattr(self, name, (lambda *_: 100) if name == fails else getattr(self, f"_{name}"))

    def _cuInit(self, flags: int) -> int:
        return 0

    def _cuDeviceGet(self, device, ordinal: int) -> int:
        ctypes.cast(device, ctypes.POINTER(ctypes.c_int))[0] = 7
        return 0

    def _cuDeviceGetAttribute(self, found, attribute: int, device) -> int:
        assert device.value == 7
        ctypes.cast(found, ctypes.POINTER(ctypes.c_int))[0] = {75: 12, 76: 1}[attribute]
        return 0


def test_the_capability_is_that_of_the_first_gpu(monkeypatch):
    monkeypatch.setattr(ctypes, "CDLL", lambda name: Driver())
    assert visible_capability() == "sm121"


@pytest.mark.parametrize("fails", ["cuInit", "cuDeviceGet", "cuDeviceGetAttribute"])
def test_a_driver_that_knows_no_gpu_tells_none(monkeypatch, fails):
    monkeypatch.setattr(ctypes, "CDLL", lambda name: Driver(fails))
    assert visible_capability() is None


def test_without_a_driver_there_is_none(monkeypatch):
    def missing(name):
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(ctypes, "CDLL", missing)
    assert visible_capability() is None
