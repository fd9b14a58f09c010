"""Kills and failing disks, in short; at length they are benchmarks/reliability/killing.py and faults.py."""

from __future__ import annotations

import sys
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest

from .reliability_scripts import reliability_scripts

pytestmark = [
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="it forks, and reads /proc"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # Python 3.12 warns of a fork beside threads
]
OPTIMIZE_CALLS, TRAIN_CALLS = 12, 60  # that change the outputs, about


@pytest.fixture(scope="module")
def scripts():
    with reliability_scripts() as modules:
        modules.forked.load_libraries()
        yield modules


@pytest.fixture(scope="module")
def inputs(scripts, tmp_path_factory):
    folder = tmp_path_factory.mktemp("faults") / "case"
    scripts.faults.make_inputs(folder)
    return folder


@pytest.mark.long
def test_killed_at_random_moments_optimize_leaves_the_old_or_the_new_output(scripts, tmp_path):
    tally = scripts.killing.kill_optimize(tmp_path / "case", 10, np.random.default_rng(3), calls=OPTIMIZE_CALLS)
    assert tally.faults == []
    assert sum(tally.states.values()) == 10
    assert tally.states["old"] + tally.states["new"] > 5  # the kills came in time


def test_killed_at_random_moments_a_training_run_goes_on_to_the_same_weights(scripts, tmp_path):
    tally = scripts.killing.kill_train(tmp_path / "case", 4, np.random.default_rng(1), calls=TRAIN_CALLS)
    assert tally.faults == []
    assert sum(tally.states.values()) == 4


@pytest.mark.parametrize("name", ["repaired.onnx", "r.json", "r.html"])
def test_an_output_that_is_cut_short_is_seen(scripts, name, tmp_path):
    def cut(out: Path) -> None:
        (out / name).write_bytes((out / name).read_bytes()[:-5])

    tally = scripts.killing.kill_optimize(
        tmp_path / "case", 1, np.random.default_rng(0), calls=OPTIMIZE_CALLS, fault=cut
    )
    assert len(tally.faults) == 1


@pytest.mark.long
@pytest.mark.parametrize("command", ["optimize", "compare", "package"])
def test_a_failing_disk_is_one_clear_line_and_loses_nothing(scripts, inputs, command):
    found = scripts.faults.fail_everywhere(command, inputs)
    assert found.wrong == []
    assert found.outcomes["refused"] >= 8
    assert found.outcomes["came through"] == 1  # the run without a fault that ends the count


def test_a_writer_that_writes_over_its_output_is_seen(scripts, inputs, monkeypatch):
    monkeypatch.setattr("vsfix.pipeline.host.console.atomic_path", lambda path, force: nullcontext(path))
    wrong = scripts.faults.fail_everywhere("compare", inputs).wrong
    assert any("['c.json'] are lost or cut short" in line for line in wrong)
