from __future__ import annotations

import stat
import sys

import pytest

from vsfix.pipeline.host import environment
from vsfix.pipeline.host.environment import describe_gpu, describe_machine, load_of, peak_memory, throttling


def test_the_processor_is_named_as_the_system_names_it(tmp_path, monkeypatch):
    path = tmp_path / "cpuinfo"
    path.write_text("processor\t: 0\nmodel name\t: A Processor @ 2.00GHz\nprocessor\t: 1\nmodel name\t: Another\n")
    monkeypatch.setattr(environment, "_CPU_INFO", path)
    assert describe_machine()["CPU"] == "A Processor @ 2.00GHz"


def test_what_the_system_does_not_tell_is_left_out(tmp_path, monkeypatch):
    monkeypatch.setattr(environment, "_CPU_INFO", tmp_path / "none")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setitem(sys.modules, "resource", None)
    assert not {"CPU", "threads"} & set(describe_machine())
    assert peak_memory() == ""


def test_the_number_of_threads_is_told_where_it_was_set(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert describe_machine()["threads"] == "3"


def test_the_peak_of_memory_is_that_of_a_process_that_runs_python():
    assert 10 < float(peak_memory().removesuffix(" MiB")) < 1e6


ANSWER = "NVIDIA H100 80GB HBM3, 570.1, 1980 MHz, 1980 MHz, 0x0000000000000000, 120.00 W, 35, 4 MiB"


@pytest.fixture
def nvidia_smi(tmp_path, monkeypatch):
    """Puts a program of that name before all others."""

    def write(script):
        path = tmp_path / "nvidia-smi"
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(path.stat().st_mode | stat.S_IEXEC)
        monkeypatch.setenv("PATH", str(tmp_path), prepend=":")

    return write


def test_the_values_stand_under_their_labels(nvidia_smi):
    nvidia_smi(f"echo '{ANSWER}'")
    found = describe_gpu()
    assert (found["GPU"], found["driver"], found["temperature"]) == ("NVIDIA H100 80GB HBM3", "570.1", "35")


@pytest.mark.parametrize("script", ["echo No devices were found; exit 6", "echo NVIDIA H100", "exit 9"])
def test_a_program_that_gives_nothing_is_told(nvidia_smi, script):
    nvidia_smi(script)
    assert list(describe_gpu()) == ["GPU"]
    assert describe_gpu()["GPU"].startswith("nvidia-smi does not answer")


def test_a_machine_without_the_program_has_no_entry(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert describe_gpu() == {}


@pytest.mark.parametrize(
    ("mask", "words", "slows"),
    [
        ("0x0000000000000000", "none", ""),
        ("0x0000000000000001", "GPU idle", ""),
        (
            "0x0000000000000024",
            "software power cap; software thermal slowdown",
            "software power cap; software thermal slowdown",
        ),
        ("0x0000000000000202", "clocks set by an application; 0x200", "0x200"),
        ("[N/A]", "not told", ""),
    ],
)
def test_the_throttle_reasons_are_told_in_words(nvidia_smi, mask, words, slows):
    nvidia_smi(f"echo '{ANSWER.replace('0x0000000000000000', mask)}'")
    found = describe_gpu()
    assert (found["throttle reasons"], throttling(found)) == (words, slows)


def test_what_changes_from_moment_to_moment_is_one_line(nvidia_smi):
    nvidia_smi(f"echo '{ANSWER}'")
    line = "SM clock 1980 MHz, highest SM clock 1980 MHz, throttle reasons none, power 120.00 W, temperature 35, memory used 4 MiB"
    assert load_of(describe_gpu()) == line
    assert load_of({}) == ""
