"""The fuzzer of benchmarks/reliability: a short run of it, and that it sees what is planted."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import pytest

from .reliability_scripts import FOLDER, reliability_scripts

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="it forks, and reads /proc")


@pytest.fixture(scope="module")
def scripts():
    with reliability_scripts() as modules:
        yield modules


@pytest.mark.long
@pytest.mark.parametrize("part", range(2))
def test_hundreds_of_damaged_files_end_in_success_or_in_one_clear_line(part, tmp_path):
    numbers = ["--inputs", "250", "--first", str(250 * part), "--seed", "7", "--processes", "1"]
    command = [sys.executable, str(FOLDER / "fuzzing.py"), *numbers, "-o", str(tmp_path / "result.json")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    counts = json.loads((tmp_path / "result.json").read_text())["counts"]
    assert sum(row["inputs"] for row in counts) == 250
    assert {"refused", "done"} <= {row["outcome"] for row in counts}


def test_an_input_is_decided_by_its_number_alone(scripts):
    made = [
        scripts.model_mutation.mutate_model(
            onnx.ModelProto.FromString(scripts.seeds.seed_models()["plain"].SerializeToString()),
            np.random.default_rng([3, 17]),
        )
        for _ in range(2)
    ]
    assert made[0] == made[1]
    assert made[0][1]


def leave(path: str) -> None:
    Path(path).write_text("rubbish")
    sys.exit(0)


def complain() -> None:
    print("vsfix: error: one\nvsfix: error: two", file=sys.stderr)
    sys.exit(2)


PLANTED = {
    "done": None,
    "traceback": lambda path: {}["nothing"],
    "crash": lambda path: os.kill(os.getpid(), signal.SIGSEGV),
    "hang": lambda path: time.sleep(60),
    "memory": lambda path: np.ones(2**40),
    "stray": lambda path: leave("stray"),
    "leftover": lambda path: leave("out/.net.onnx.part"),
    "output": lambda path: leave("out/net.onnx"),
    "message": lambda path: complain(),
}


@pytest.mark.parametrize("verdict", PLANTED)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # Python 3.12 warns of a fork beside threads
def test_what_is_planted_into_a_reader_is_seen(verdict, scripts, tmp_path, monkeypatch):
    folder = tmp_path / "case"
    (folder / "out").mkdir(parents=True)
    (folder / "seed.onnx").write_bytes(scripts.seeds.seed_models()["plain"].SerializeToString())
    if PLANTED[verdict] is not None:
        monkeypatch.setattr("vsfix.arguments.read_model", PLANTED[verdict])
    monkeypatch.setattr(scripts.trial, "SECONDS", 2.0 if verdict == "hang" else 60.0)
    outcome = scripts.trial.run_trial(["inspect", "seed.onnx"], folder)
    assert outcome.verdict == verdict, outcome.said
    assert outcome.is_clean == (verdict == "done")
