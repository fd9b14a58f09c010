from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from vsfix.graph_passes.errors import MissingComponentError
from vsfix.graph_passes.measurement import resident_memory
from vsfix.graph_passes.measurement.resident_memory import FreedMemory, freed_bytes, resident_bytes

NOWHERE = Path("/nowhere/statm")
SIZE = 200 << 20


@pytest.mark.parametrize("statm", [Path("/proc/self/statm"), NOWHERE], ids=["proc", "no proc"])
def test_what_the_process_holds_grows_by_an_array_that_it_fills(statm):
    before = resident_bytes(statm)
    assert before > 10 << 20
    array = np.ones(SIZE // 8)
    grown = resident_bytes(statm) - before
    assert 0.9 * SIZE < grown < 1.2 * SIZE
    del array


def test_a_file_that_says_nothing_is_no_answer(tmp_path):
    (tmp_path / "statm").write_text("nonsense")
    assert resident_bytes(tmp_path / "statm") > 10 << 20


def test_without_proc_and_psutil_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "psutil", None)
    with pytest.raises(MissingComponentError, match="pip install psutil"):
        resident_bytes(NOWHERE)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only glibc keeps what was freed")
def test_freed_memory_goes_back_to_the_system():
    """In a process of its own: in one that has run other tests the pieces fill holes of its heap, which stay."""
    script = """
import gc
from vsfix.graph_passes.measurement.resident_memory import resident_bytes, return_freed_memory
small = [bytes(1 << 15) for _ in range(4000)]  # 125 MiB in pieces, the last of which holds the heap up
last = small.pop()
full = resident_bytes()
small.clear()
gc.collect()
return_freed_memory()
print(full - resident_bytes(), len(last))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60)
    freed, held = map(int, done.stdout.split())
    assert freed > 100 << 20
    assert held == 1 << 15


def test_freed_memory_stays_until_the_process_has_grown_and_much_of_that_is_free(monkeypatch):
    held = iter([100, 100, 140, 151, 110, 80, 131, 90, 141, 141])
    free = iter([30, 26, None, 25])
    given_back = []
    monkeypatch.setattr(resident_memory, "resident_bytes", lambda: next(held))
    monkeypatch.setattr(resident_memory, "freed_bytes", lambda: next(free))
    monkeypatch.setattr(resident_memory, "return_freed_memory", lambda: given_back.append(True))
    freed, counts = FreedMemory(50), []
    for _ in range(6):  # 100 given back; 140; 151 given back to 110; 80; 131, unknown, to 90; 141 of which 25 are free
        freed.give_back()
        counts.append(len(given_back))
    assert counts == [1, 1, 2, 2, 3, 3]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc says what is free")
def test_what_was_freed_in_pieces_is_counted():
    if freed_bytes() is None:
        pytest.skip("this glibc does not say what is free")
    small = [bytes(1 << 15) for _ in range(2000)]
    before = freed_bytes()
    del small[::2]
    assert freed_bytes() - before > 25 << 20


def test_a_process_that_holds_little_of_what_it_may_keeps_what_it_freed(monkeypatch):
    given_back = []
    monkeypatch.setattr(resident_memory, "freed_bytes", lambda: 90)
    monkeypatch.setattr(resident_memory, "return_freed_memory", lambda: given_back.append(True))
    for held, expected in ((100, 0), (150, 0), (151, 1)):
        monkeypatch.setattr(resident_memory, "resident_bytes", lambda held=held: held)
        FreedMemory(50, enough=150).give_back()
        assert len(given_back) == expected
