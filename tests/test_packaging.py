"""What is easily forgotten: a new package in the map, a public name, a link, a command of README or of the walkthrough."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from click.testing import CliRunner

from vsfix.pipeline.cli.main import vsfix

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text()
WALKTHROUGH = (ROOT / "docs" / "walkthrough.md").read_text()
NETWORK = (ROOT / "docs" / "mynet.py").read_text()


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


@pytest.mark.parametrize("package", ["graph_passes", "pipeline", "trainers"])
def test_contributing_lists_the_rooms_of_each_package(package):
    section = CONTRIBUTING.split(f"### {package}")[1].split("\n#")[0]
    rooms = {init.parent.name for init in (ROOT / package).glob("*/__init__.py")}
    assert set(re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE)) == rooms


def test_the_files_that_contributing_names_are_there():
    named = re.findall(r"`((?:graph_passes|trainers|pipeline|tests|benchmarks|docs)/[\w/.]+)`", CONTRIBUTING)
    assert len(named) > 30
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_the_list_of_packages_is_the_map():
    text = (ROOT / "pyproject.toml").read_text()
    listed = re.search(r"^packages = \[\n([^\]]+)\]", text.split("[tool.setuptools]")[1], re.MULTILINE)
    assert listed is not None
    assert set(re.findall(r'^    "([\w.]+)"', listed[1], re.MULTILINE)) == set(package_map())


def test_every_template_is_installed():
    assert '"vsfix.pipeline.pages" = ["templates/*"]' in (ROOT / "pyproject.toml").read_text()
    assert {path.parent for path in (ROOT / "pipeline").rglob("*.j2")} == {ROOT / "pipeline" / "pages" / "templates"}


def test_relative_links_of_the_documents_exist():
    for document in [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\(([^)#]+)", document.read_text()):
            if not target.startswith("http"):
                assert (document.parent / target).exists(), f"{document.name}: {target}"


def typed(text: str) -> list[str]:
    """Every line that calls vsfix in a code block without a language."""
    blocks = text.split("\n```")[1::2]
    return [line for block in blocks if block.startswith("\n") for line in block.split("\n") if line[:6] == "vsfix "]


@pytest.mark.parametrize("line", typed(README))
def test_every_command_of_the_readme_has_options_that_exist(line):
    words = shlex.split(line)[1:]
    help_text = CliRunner().invoke(vsfix, [words[0], "--help"], prog_name="vsfix").output
    for option in (word for word in words if word.startswith("-")):
        assert re.search(rf"(^|\s|,){re.escape(option)}\b", help_text), f"{words[0]} has no {option}"


def run(*words: str) -> str:
    """What a command prints; that it ends with 0 is a test."""
    process = subprocess.run(words, capture_output=True, text=True, check=False)
    assert process.returncode == 0, f"{' '.join(words)}\n{process.stdout}{process.stderr}"
    return process.stdout


def call(line: str) -> None:
    """Runs a line that calls vsfix, in this process."""
    result = CliRunner().invoke(vsfix, shlex.split(line)[1:], prog_name="vsfix")
    assert result.exit_code == 0, f"{line}\n{result.output}"


def test_the_network_that_the_readme_shows_is_the_one_of_its_file():
    shown = README.split("```python\n")[1].split("```")[0]
    code = re.sub(r'    """.*"""\n', "", NETWORK)
    assert "def build()" in shown
    assert shown.strip() in code


@pytest.fixture(scope="module")
def own_model(tmp_path_factory):
    """The folder in which README's commands ran, in their order."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "mynet.py").write_text(NETWORK)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.delitem(sys.modules, "mynet", raising=False)
        run(sys.executable, "mynet.py")
        commands = [line for line in typed(README) if "mynet" in line or ".onnx" in line]
        assert [line.split()[1] for line in commands] == [
            "export",
            "inspect",
            "optimize",
            "optimize",
            "verify",
            "build",
        ]
        for line in commands if find_spec("tensorrt_rtx") else commands[:-1]:
            call(line)
    return folder


@pytest.mark.long
def test_the_own_model_of_the_readme_goes_from_its_training_to_an_engine(own_model):
    made = {path.name for path in own_model.iterdir()}
    assert {"weights.pt", "model.onnx", "repaired.onnx", "report.html", "half.onnx"} <= made
    assert "half.plan" in made or find_spec("tensorrt_rtx") is None


@pytest.mark.long
def test_the_python_of_the_readme_runs(own_model, monkeypatch):
    monkeypatch.chdir(own_model)
    blocks = [block.split("```")[0] for block in README.split("```python\n")[2:]]
    assert len(blocks) == 2
    before = (own_model / "repaired.onnx").stat().st_mtime_ns
    said = run(sys.executable, "-c", "".join(blocks))
    assert "Repaired 2 of 2 BatchNorms" in said
    assert re.search(r"PASS +Repaired \d parts", said)
    assert (own_model / "repaired.onnx").stat().st_mtime_ns > before


@pytest.mark.long
def test_the_walkthrough_runs_on_small_data(tmp_path, monkeypatch):
    """Its commands in their order, with digits instead of Fashion-MNIST and fewer images."""
    monkeypatch.chdir(tmp_path)
    commands = [line for line in typed(WALKTHROUGH) if " fashion-mnist" in line or line.startswith("vsfix export run")]
    walk = ["train", "export", "inspect", "optimize", "verify", "optimize", "verify", "benchmark"]
    assert [line.split()[1] for line in commands] == walk
    for line in commands:
        small = line.replace("fashion-mnist", "digits").replace("--samples 20000 --epochs 2", "--epochs 10")
        small = small.replace("preresnet-20", "preresnet-8").replace(" --eval-data digits", "")
        if line.startswith("vsfix benchmark"):
            small = small.replace(" --precision int8", " --seconds 0 --samples 100 --repair none")
        call(small)
    assert (tmp_path / "repaired.onnx").is_file()
    assert (tmp_path / "report.html").is_file()
    assert (tmp_path / "benchmark.html").is_file()
