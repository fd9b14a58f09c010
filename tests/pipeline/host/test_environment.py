from __future__ import annotations

import sys

from vsfix.pipeline.host import environment
from vsfix.pipeline.host.environment import describe_machine, peak_memory


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
