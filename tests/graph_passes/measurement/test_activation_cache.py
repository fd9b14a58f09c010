from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from vsfix.graph_passes.measurement.activation_cache import ActivationCache


def nothing() -> int:
    """Stands for a process that holds nothing but its arrays."""
    return 0


def test_what_else_the_process_holds_counts():
    with ActivationCache(1000 + 1000 // 7, resident=lambda: 400) as cache:  # an eighth is left free
        cache.put(0, {"a": np.zeros(75), "b": np.zeros(76)})
        assert cache.spilled == 608


def test_arrays_come_back_from_memory_and_from_disk_bit_for_bit():
    arrays = {f"t{index}": np.random.default_rng(index).normal(size=100) for index in range(6)}
    with ActivationCache(1600, resident=nothing) as cache:
        cache.put(0, arrays)
        assert cache.spilled == 4 * 800
        for name, array in arrays.items():
            assert cache.get(0, name).tobytes() == array.tobytes()


def test_dropping_frees_the_place_in_memory():
    with ActivationCache(1000, resident=nothing) as cache:
        cache.put(0, {"a": np.zeros(100)})
        cache.drop(0, "a")
        cache.put(0, {"b": np.zeros(100)})
        assert cache.spilled == 0
        with pytest.raises(KeyError):
            cache.get(0, "a")


def test_arrays_are_swapped_where_the_others_fit_in_their_place_and_not_at_all_where_they_do_not():
    with ActivationCache(1600, resident=nothing) as cache:
        cache.put(0, {"a": np.zeros(100), "b": np.zeros(100)})
        assert not cache.swap(0, ["a"], {"c": np.zeros(101)})
        assert cache.holds(0, "a")
        assert not cache.holds(0, "c")
        assert cache.swap(0, ["a"], {"c": np.ones(100)})
        assert (cache.holds(0, "a"), cache.holds(0, "b"), cache.get(0, "c").sum()) == (False, True, 100)
        assert cache.spilled == 0


def test_the_files_go_with_the_cache(monkeypatch, tmp_path):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with ActivationCache(max_memory=0) as cache:
        cache.put(0, {"a": np.zeros(100)})
        (file,) = tmp_path.glob(".vsfix-*/*.npy")
        assert file.parent.stat().st_mode & 0o77 == 0  # activations are the user's own
    assert list(tmp_path.iterdir()) == []


KILLED = """
import os, signal, sys
import numpy as np
from vsfix.graph_passes.measurement.activation_cache import ActivationCache
with ActivationCache(max_memory=0) as cache:
    cache.put(0, {"a": np.zeros(100)})
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="there are no locks that a killed process gives up")
def test_what_a_killed_process_leaves_goes_with_the_next_run(monkeypatch, tmp_path):
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    killed = subprocess.run([sys.executable, "-c", KILLED], env=environment, check=False)
    assert killed.returncode == -signal.SIGKILL
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    (left,) = tmp_path.glob(".vsfix-*")
    with ActivationCache(max_memory=0) as other, ActivationCache(max_memory=0) as cache:
        other.put(0, {"a": np.zeros(100)})
        cache.put(0, {"a": np.ones(100)})
        assert not left.exists()
        assert other.get(0, "a").sum() == 0  # what is in use stays


class Slow:
    """Stands for an array of 800 bytes; whoever asks for its size lets the other threads on."""

    @property
    def nbytes(self) -> int:
        time.sleep(0.001)
        return 800


def test_threads_that_put_at_once_leave_the_count_of_memory_right():
    with ActivationCache(40 * 800, resident=nothing) as cache, ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda batch: cache.put(batch, {"a": Slow()}), range(40)))
        assert cache.spilled == 0
        cache.put(40, {"a": np.zeros(100)})
        assert cache.spilled == 800
        list(pool.map(lambda batch: cache.drop(batch, "a"), range(40)))
        cache.put(41, {f"t{index}": np.zeros(100) for index in range(41)})
        assert cache.spilled == 2 * 800
