from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from vsfix.trainers.onnxruntime_library import TELEMETRY_OFF

ROOT = Path(__file__).parents[2]
LOAD = "from vsfix.trainers.onnxruntime_library import import_onnxruntime; import_onnxruntime().SessionOptions()"


def load_in(home: Path, code: str, **environment: str) -> list[Path]:
    """What a process that runs `code` leaves in an empty home."""
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
