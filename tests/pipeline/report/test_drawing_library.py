from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import matplotlib as mpl
import pytest

from vsfix.pipeline.report.drawing_library import only_settings

DRAW = (
    "from vsfix.pipeline.report.figure import figure_svg\n"
    "import os\n"
    "print(os.getcwd())\n"
    "print(figure_svg(lambda plots: plots[0].set_title('a title')))"
)


def drawn_in(folder) -> str:
    """A figure that a process draws whose current folder is the given one."""
    command = [sys.executable, "-I", "-c", DRAW]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True, timeout=120)
    where, _, figure = done.stdout.partition("\n")
    assert Path(where) == folder.resolve()
    return figure


@pytest.fixture(scope="module")
def figure(tmp_path_factory) -> str:
    return drawn_in(tmp_path_factory.mktemp("empty"))


@pytest.mark.parametrize("content", [b"text.usetex: True\nfont.size: 300\naxes.facecolor: red\n", b"\xff\xfe", None])
def test_a_file_in_the_current_folder_changes_no_figure(figure, tmp_path, content):
    if content is None:
        os.mkfifo(tmp_path / "matplotlibrc")  # who reads it waits
    else:
        (tmp_path / "matplotlibrc").write_bytes(content)
    assert drawn_in(tmp_path) == figure


def test_the_settings_of_a_program_are_neither_used_nor_changed():
    before = mpl.rcParams["font.size"]
    with mpl.rc_context({"font.size": before + 1}):
        with only_settings({"text.color": "red"}):
            assert (mpl.rcParams["font.size"], mpl.rcParams["text.color"]) == (before, "red")
        assert mpl.rcParams["font.size"] == before + 1
    assert mpl.rcParams["text.color"] == "black"


def test_nothing_else_loads_matplotlib():
    loads = re.compile(r"^\s*(import matplotlib|from matplotlib)\b", re.MULTILINE)
    root = Path(__file__).parents[3]
    files = [path for folder in ("graph_passes", "pipeline", "trainers") for path in (root / folder).rglob("*.py")]
    assert [path.name for path in files if loads.search(path.read_text())] == ["drawing_library.py"]
