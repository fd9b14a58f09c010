from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from vsfix.graph_passes.activation_cache import ActivationCache


def test_arrays_come_back_from_memory_and_from_disk_bit_for_bit():
    arrays = {f"t{index}": np.random.default_rng(index).normal(size=100) for index in range(6)}
    with ActivationCache(max_memory=1600) as cache:
        cache.put(0, arrays)
        assert cache.spilled == 4 * 800
        for name, array in arrays.items():
            assert cache.get(0, name).tobytes() == array.tobytes()


def test_dropping_frees_the_place_in_memory():
    with ActivationCache(max_memory=800) as cache:
        cache.put(0, {"a": np.zeros(100)})
        cache.drop(0, "a")
        cache.put(0, {"b": np.zeros(100)})
        assert cache.spilled == 0
        with pytest.raises(KeyError):
            cache.get(0, "a")


def test_the_files_go_with_the_cache(monkeypatch, tmp_path):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with ActivationCache(max_memory=0) as cache:
        cache.put(0, {"a": np.zeros(100)})
        assert len(list(Path(tmp_path).glob("vsfix-*/*.npy"))) == 1
    assert list(tmp_path.iterdir()) == []


class Slow:
    """Stands for an array of 800 bytes; whoever asks for its size lets the other threads on."""

    @property
    def nbytes(self) -> int:
        time.sleep(0.001)
        return 800


def test_threads_that_put_at_once_leave_the_count_of_memory_right():
    with ActivationCache(max_memory=40 * 800) as cache, ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda batch: cache.put(batch, {"a": Slow()}), range(40)))
        assert cache.spilled == 0
        cache.put(40, {"a": np.zeros(100)})
        assert cache.spilled == 800
        list(pool.map(lambda batch: cache.drop(batch, "a"), range(40)))
        cache.put(41, {f"t{index}": np.zeros(100) for index in range(41)})
        assert cache.spilled == 2 * 800
