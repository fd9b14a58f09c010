"""`import vsfix`: its names are complete, documented and loaded when they are asked for."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

import vsfix

ROOT = Path(__file__).parents[3]
API = ROOT / "pipeline" / "api"


def run(script: str) -> str:
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.strip()


@pytest.mark.parametrize("name", dir(vsfix))
def test_every_public_name_is_there_and_documented(name):
    page = (ROOT / "docs" / "api.md").read_text()
    assert getattr(vsfix, name) is not None
    assert re.search(rf"^::: vsfix\.{name}\b|`vsfix\.{name}`", page, re.MULTILINE), f"docs/api.md has no {name}"


def test_what_the_modules_of_the_interface_offer_is_public():
    offered = {
        found
        for path in API.glob("*.py")
        if path.stem not in ("__init__", "arguments", "results", "torch", "nn")
        for found in re.findall(
            r"^class (\w+)\(.*(?:Result|Error)\)|^def ([a-z]\w+)\(\n", path.read_text(), re.MULTILINE
        )
    }
    assert {name for pair in offered for name in pair if name} | {"VsfixError", "__version__"} == set(vsfix.__all__)


def test_nothing_heavy_is_loaded_and_it_takes_no_time():
    script = (
        "import sys, time; start = time.perf_counter(); import vsfix; took = time.perf_counter() - start; "
        "dir(vsfix), vsfix.VsfixError; "
        "print(took, {'numpy', 'onnx', 'torch', 'onnxruntime', 'rich', 'click', 'jinja2'} & set(sys.modules))"
    )
    found = [run(script).split(maxsplit=1) for _ in range(3)]
    assert {heavy for _, heavy in found} == {"set()"}
    assert min(float(took) for took, _ in found) < 0.05


def test_a_repair_without_torch_loads_none():
    script = "import sys, vsfix; vsfix.optimize, vsfix.inspect; print('torch' in sys.modules, 'jinja2' in sys.modules)"
    assert run(script) == "False False"


def test_the_version_is_that_of_the_package():
    assert vsfix.__version__ == version("vsfix")


def test_a_name_that_is_none_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'vsfix' has no attribute 'optimise'"):
        _ = vsfix.optimise


def test_a_package_that_is_missing_is_named_with_the_line_that_installs_it():
    script = (
        "import sys; sys.modules['torch'] = None\n"
        "import vsfix\n"
        "try:\n    vsfix.export\nexcept vsfix.VsfixError as error:\n    print(error.exit_code, error)"
    )
    assert run(script) == "3 torch is not installed; run: pip install 'vsfix[train]'"


def test_nobody_imports_the_second_copy():
    second = "vsfix.pipeline" + ".api"
    sources = [
        path
        for folder in ("pipeline", "graph_passes", "trainers", "tests", "benchmarks")
        for path in (ROOT / folder).rglob("*.py")
    ]
    naming = [
        path
        for path in sources
        if re.search(rf"^\s*(from|import) {re.escape(second)}\b", path.read_text(), re.MULTILINE)
    ]
    assert naming == []


def test_the_links_for_type_checkers_are_complete():
    links = {path.name for path in (ROOT / ".typing" / "vsfix").iterdir()}
    modules = {path.name for path in API.glob("*.py")} | {"py.typed"}
    assert links == modules | {"graph_passes", "pipeline", "trainers"}


def test_the_import_contract_names_every_module():
    contract = (ROOT / "pyproject.toml").read_text().split("`import vsfix` stands between")[1].split("[[")[0]
    named = set(re.findall(r"\bvsfix\.(\w+)(?!\.)\b", contract)) - {"pipeline"}
    assert named == {path.stem for path in API.glob("*.py")} - {"__init__"}
