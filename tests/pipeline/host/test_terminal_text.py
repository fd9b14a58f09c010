from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import onnx
import onnx.helper
import pytest

from vsfix.pipeline.cli import commands
from vsfix.pipeline.host.terminal_text import print_line, printable

EVIL = "\x1b]0;title\x07\x1b[2J\x9b31m\nPASS\r\u202e"
SEEN = r"\x1b]0;title\x07\x1b[2J\x9b31m\nPASS\r\u202e"


def test_what_can_be_seen_stays_and_the_rest_becomes_an_escape():
    assert printable("Größe 3 → 4 µs, 日本 [/red] \\x1b") == "Größe 3 → 4 µs, 日本 [/red] \\x1b"
    assert printable(EVIL) == SEEN
    assert printable("\ud800\x7f\u2066") == r"\ud800\x7f\u2066"


def test_a_line_stays_a_line(capsys):
    print_line(EVIL)
    print_line(EVIL, err=True)
    assert capsys.readouterr() == (SEEN + "\n", SEEN + "\n")


def with_first_batch_norm(model: onnx.ModelProto, name: str, path: Path) -> Path:
    """Writes the model with another name for its first BatchNorm, which goes by that of its parameters."""
    for weight in model.graph.initializer:
        weight.name = weight.name.replace("bn1", name)
    for node in model.graph.node:
        node.input[:] = [tensor.replace("bn1", name) for tensor in node.input]
    onnx.save(model, path)
    return path


@pytest.fixture
def evil_model(residual, tmp_path):
    """A model with a BatchNorm whose name a terminal would take for commands."""
    return with_first_batch_norm(residual, EVIL, tmp_path / "m.onnx")


@pytest.mark.parametrize("options", [[], ["-vv"]])
def test_names_of_a_model_give_the_terminal_no_commands(call, evil_model, options):
    shown = call(*options, "inspect", evil_model)
    fixed = call(*options, "optimize", evil_model, "--noise", f"{EVIL}=dropout:0.5", "--method", "analytic")
    for result in (shown, fixed):
        assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]", result.output), result.output
        assert not re.search("^PASS\r?$", result.output, re.MULTILINE)
    assert r"\x1b" in shown.stdout, shown.output


def test_a_terminal_without_the_letters_of_a_name_gets_escapes(residual, tmp_path):
    path = with_first_batch_norm(residual, "größe", tmp_path / "m.onnx")
    environment = os.environ | {"PYTHONIOENCODING": "", "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    code = "from vsfix.pipeline.cli.main import main; main()"
    done = subprocess.run(
        [sys.executable, "-I", "-X", "utf8=0", "-c", code, "inspect", str(path)],
        env=environment,
        capture_output=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert rb"gr\xf6\xdfe" in done.stdout


def test_commands_print_in_no_other_way():
    files = sorted(Path(commands.__file__).parent.glob("*.py"))
    assert [path.name for path in files if re.search(r"\b(click\.echo|print)\(", path.read_text())] == []
