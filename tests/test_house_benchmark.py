"""The counts of the source: each is right on a small tree, and one that is passed is said."""

from __future__ import annotations

import cProfile
import importlib
from pathlib import Path

import pytest


@pytest.fixture
def house(monkeypatch, tmp_path):
    """The script, on a tree whose README and modules are written by the test."""
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "benchmarks")
    script = importlib.import_module("house")
    monkeypatch.setattr(script, "ROOT", tmp_path)
    for package in script.PACKAGES:
        (tmp_path / package / "room").mkdir(parents=True)
        (tmp_path / package / "room" / "__init__.py").write_text("")
        (tmp_path / package / "room" / "one.py").write_text("x = 1\n" * 400)
    (tmp_path / "README.md").write_text("three words here\n" * 150)
    return script


def run(house, monkeypatch) -> int:
    monkeypatch.setattr("sys.argv", ["house.py", "--no-runtime"])
    return house.main()


def test_a_tree_within_its_bounds_passes(house, monkeypatch, capsys):
    assert run(house, monkeypatch) == 0
    said = capsys.readouterr().out
    assert "FAIL" not in said
    assert said.count("PASS") == 6


@pytest.mark.parametrize(
    ("file", "text", "said"),
    [
        ("trainers/room/one.py", "x = 1\n" * 401, "trainers/room/one.py 401"),
        ("README.md", "a word\n" * 151, "151  at most   150"),
        ("README.md", "word " * 1301, "1,301  at most 1,300"),
    ],
)
def test_what_passes_its_bound_fails(house, monkeypatch, capsys, tmp_path, file, text, said):
    (tmp_path / file).write_text(text)
    assert run(house, monkeypatch) == 1
    failed = [line for line in capsys.readouterr().out.splitlines() if line.startswith("FAIL")]
    assert len(failed) == 1
    assert said in failed[0]


def test_a_folder_of_thirteen_modules_fails_and_is_named(house, monkeypatch, capsys, tmp_path):
    for number in range(12):
        (tmp_path / "pipeline" / "room" / f"m{number}.py").write_text("")
    assert run(house, monkeypatch) == 1
    assert "pipeline/room 13" in capsys.readouterr().out


def test_calls_of_a_function_are_counted(house):
    def counted() -> None: ...

    profile = cProfile.Profile()
    profile.runcall(lambda: [counted() for _ in range(7)])
    assert house.calls(profile, counted) == 7
    assert house.calls(profile, counted, own=False) == 0
    assert house.calls(profile, house.main) == 0
