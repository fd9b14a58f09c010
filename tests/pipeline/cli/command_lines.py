"""Commands as lists of arguments, and what their output is held to."""

from __future__ import annotations

import sys


def one_line(result, code: int) -> str:
    """The only line on stderr, of a call that ended with `code` and printed nothing."""
    assert result.exit_code == code, result.output
    assert result.stdout == ""
    lines = result.stderr.splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("vsfix: error: ")
    return lines[0]


def verify(folder, data):
    return ["verify", folder / "ok.onnx", "--against", folder / "run.pt", "--data", data]


def train(folder, *arguments):
    return ["train", "--model", "mlp-1", "--data", "digits", "-o", folder / "training", *arguments]


def run_script(*arguments: object) -> list[str]:
    return [sys.executable, "-c", "from vsfix.pipeline.cli.main import main; main()", *map(str, arguments)]
