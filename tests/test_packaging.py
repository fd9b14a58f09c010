"""What is easily forgotten: a new package in the map, a public name, a link, a command of README."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def package_map() -> dict[str, str]:
    """The package map of pyproject.toml, as text: Python 3.10 has no tomllib."""
    text = (ROOT / "pyproject.toml").read_text()
    section = text.split("[tool.setuptools.package-dir]")[1].split("[tool.")[0]
    return dict(re.findall(r'"([\w.]+)" = "([\w/]+)"', section))


def test_every_package_on_the_disk_is_in_the_map():
    roots = ("graph_passes", "pipeline", "trainers")
    on_disk = {str(init.parent.relative_to(ROOT)) for root in roots for init in (ROOT / root).rglob("__init__.py")}
    assert set(package_map().values()) == on_disk


@pytest.mark.parametrize("package", ["graph_passes", "pipeline", "trainers"])
def test_the_docstring_of_a_package_names_every_module(package):
    named = set(re.findall(r"\w+", (ROOT / package / "__init__.py").read_text()))
    assert {path.stem for path in (ROOT / package).glob("*.py")} - {"__init__"} <= named


def test_the_list_of_packages_is_the_map():
    text = (ROOT / "pyproject.toml").read_text()
    listed = re.search(r"^packages = \[(\"vsfix[^\]]+)\]", text, re.MULTILINE)
    assert listed is not None
    assert set(re.findall(r'"([\w.]+)"', listed[1])) == set(package_map())


def test_every_template_is_installed():
    assert '"vsfix.pipeline.report" = ["templates/*"]' in (ROOT / "pyproject.toml").read_text()
    assert {path.parent for path in (ROOT / "pipeline").rglob("*.j2")} == {ROOT / "pipeline" / "report" / "templates"}


def test_relative_links_of_the_documents_exist():
    for document in [ROOT / "README.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\(([^)#]+)", document.read_text()):
            if not target.startswith("http"):
                assert (document.parent / target).exists(), f"{document.name}: {target}"


def readme_commands() -> list[str]:
    """Every line that calls vsfix in a code block of README without a language."""
    blocks = README.split("\n```")[1::2]
    return [line for block in blocks if block.startswith("\n") for line in block.split("\n") if line[:6] == "vsfix "]


@pytest.mark.parametrize("line", readme_commands())
def test_every_command_of_the_readme_has_options_that_exist(line):
    from click.testing import CliRunner

    from vsfix.pipeline.cli.main import vsfix

    words = shlex.split(line)[1:]
    help_text = CliRunner().invoke(vsfix, [words[0], "--help"], prog_name="vsfix").output
    for option in (word for word in words if word.startswith("-")):
        assert re.search(rf"(^|\s|,){re.escape(option)}\b", help_text), f"{words[0]} has no {option}"


def test_the_walk_of_the_readme_runs_on_small_data(tmp_path, monkeypatch):
    """The commands of README in their order, with digits in the place of Fashion-MNIST and fewer images."""
    monkeypatch.chdir(tmp_path)
    commands = [line for line in readme_commands() if " fashion-mnist" in line or line.startswith("vsfix export run")]
    walk = ["train", "export", "inspect", "optimize", "verify", "optimize", "verify", "benchmark", "optimize"]
    assert [line.split()[1] for line in commands] == walk
    assert "--precision int8" in commands[-1]  # which tests/pipeline/casting/test_quantization.py runs
    for line in commands[:-1]:
        small = line.replace("fashion-mnist", "digits").replace("--samples 20000 --epochs 2", "--epochs 10")
        small = small.replace("preresnet-20", "preresnet-8").replace(" --eval-data digits", "")
        if line.startswith("vsfix benchmark"):
            small = small.replace(" --precision int8", " --seconds 0")
        program = str(Path(sys.executable).with_name("vsfix"))
        process = subprocess.run([program, *shlex.split(small)[1:]], capture_output=True, text=True, check=False)
        assert process.returncode == 0, f"{small}\n{process.stdout}{process.stderr}"
    assert (tmp_path / "repaired.onnx").is_file()
    assert (tmp_path / "report.html").is_file()
    assert (tmp_path / "benchmark.html").is_file()
