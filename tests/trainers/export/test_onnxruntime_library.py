from __future__ import annotations

import math
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

from vsfix.graph_passes.errors import CheckFailedError
from vsfix.trainers.export.onnxruntime_library import TELEMETRY_OFF, compare_with_torch

ROOT = Path(__file__).parents[3]
LOAD = "from vsfix.trainers.export.onnxruntime_library import import_onnxruntime; import_onnxruntime().SessionOptions()"


def load_in(home: Path, code: str, **environment: str) -> list[Path]:
    """The files that a process that runs `code` leaves in an empty home."""
    own = {key: value for key, value in os.environ.items() if key not in (TELEMETRY_OFF, "XDG_CACHE_HOME", "CI")}
    subprocess.run([sys.executable, "-c", code], check=True, env=own | {"HOME": str(home)} | environment, timeout=120)
    return list(home.iterdir())


def test_loading_leaves_no_identifier_of_the_machine(tmp_path):
    assert load_in(tmp_path, LOAD) == []


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="where it puts its identifier differs")
def test_what_the_user_has_said_stands(tmp_path):
    said = "import os; " + LOAD + f"; assert os.environ[{TELEMETRY_OFF!r}] == '0'"
    load_in(tmp_path, said, **{TELEMETRY_OFF: "0"})


def test_no_module_loads_it_by_itself():
    loads = re.compile(r"^\s*(import onnxruntime|from onnxruntime)\b", re.MULTILINE)
    folders = ("graph_passes", "trainers", "pipeline", "benchmarks")
    files = [path for folder in folders for path in (ROOT / folder).rglob("*.py")]
    assert [path.name for path in files if loads.search(path.read_text())] == ["onnxruntime_library.py"]


@pytest.fixture
def doubling(parse, tmp_path):
    path = tmp_path / "m.onnx"
    onnx.save(parse("(float[N, 2] x) => (float[N, 2] y) { y = Mul (x, two) }", {"two": np.float32([2, 2])}), path)
    return path


def test_the_worst_batch_counts(doubling):
    good = np.ones((3, 2), np.float32)
    runs = [({"x": good}, {"doubled": expected}) for expected in (2 * good, 2 * good + 0.5, 2 * good)]
    (agreement,) = compare_with_torch(doubling, runs)
    assert agreement.output == "doubled"
    assert agreement.max_abs_error == pytest.approx(0.5, rel=1e-12)
    assert agreement.snr_db == pytest.approx(20 * math.log10(2.5 / 0.5), rel=1e-9)


def test_an_output_that_is_not_finite_never_passes(doubling):
    huge = np.full((1, 2), 3e38, np.float32)
    (agreement,) = compare_with_torch(doubling, [({"x": huge}, {"y": np.ones((1, 2))})])
    assert (agreement.max_abs_error, agreement.snr_db) == (math.inf, -math.inf)


def test_another_shape_is_a_failed_check(doubling):
    with pytest.raises(CheckFailedError, match=r"gives shape \(1, 2\) for inputs of \(1, 2\), torch \(2,\)"):
        compare_with_torch(doubling, [({"x": np.ones((1, 2), np.float32)}, {"y": np.ones(2)})])


def test_a_file_that_does_not_run_is_a_failed_check(doubling):
    with pytest.raises(CheckFailedError, match="can't run") as caught:
        compare_with_torch(doubling, [({"x": np.ones((1, 3), np.float32)}, {"y": np.ones((1, 3))})])
    assert "\n" not in str(caught.value)
