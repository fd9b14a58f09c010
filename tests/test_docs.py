"""The user guide: it builds without a warning, fetches nothing, and its commands have the options that they are typed with."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = sorted((ROOT / "docs").glob("*.md"))
needs_mkdocs = pytest.mark.skipif(
    any(find_spec(package) is None for package in ("mkdocs", "material", "mkdocstrings")),
    reason="mkdocs is not installed; run: pip install 'vsfix[docs]'",
)


def build(config: Path, site: Path) -> subprocess.CompletedProcess[str]:
    """`mkdocs build --strict`, which ends with 1 where there was a warning."""
    command = [
        sys.executable,
        "-m",
        "mkdocs",
        "build",
        "--strict",
        "--config-file",
        str(config),
        "--site-dir",
        str(site),
    ]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The built site; the build itself is a test."""
    folder = tmp_path_factory.mktemp("site")
    process = build(ROOT / "mkdocs.yml", folder)
    assert process.returncode == 0, process.stdout + process.stderr
    assert "WARNING" not in process.stderr
    return folder


@pytest.mark.long
@needs_mkdocs
def test_every_page_is_built_and_can_be_reached(site):
    start = (site / "index.html").read_text()
    for page in PAGES:
        assert (site / page.with_suffix(".html").name).is_file(), page.name
        assert page.name == "index.md" or f'href="{page.stem}.html"' in start, page.name


@needs_mkdocs
def test_no_page_fetches_anything_from_elsewhere(site):
    fetched = re.compile(r"<(?:script|img|iframe|source)\b[^>]*\bsrc=\"([^\"]*)\"|<link\b[^>]*\bhref=\"([^\"]*)\"")
    pages = list(site.glob("*.html"))
    found = [a or b for page in pages for a, b in fetched.findall(page.read_text())]
    assert len(found) > len(pages)  # each has a style sheet at least
    assert [target for target in found if re.match(r"(https?:)?//", target)] == []


@needs_mkdocs
def test_the_reference_shows_what_the_docstrings_say(site):
    text = (site / "api.html").read_text()
    for name in ("inspect", "optimize", "Optimization.state_dict", "torch.repair_", "graph_passes.errors.VsfixError"):
        assert f'id="vsfix.{name}"' in text
    assert "Brings a model to the network that was trained" in text


@pytest.mark.long
@needs_mkdocs
def test_a_link_to_a_heading_that_is_not_there_fails_the_build(tmp_path):
    shutil.copytree(ROOT / "docs", tmp_path / "docs")
    (tmp_path / "mkdocs.yml").write_text(
        (ROOT / "mkdocs.yml").read_text().replace("[.typing]", f"[{ROOT / '.typing'}]")
    )
    with (tmp_path / "docs" / "index.md").open("a") as page:
        page.write("\n[nowhere](methods.md#no-such-heading)\n")
    process = build(tmp_path / "mkdocs.yml", tmp_path / "site")
    assert process.returncode == 1
    assert "no-such-heading" in process.stderr
    assert process.stderr.count("WARNING") == 1, process.stderr


def commands() -> list[str]:
    """Every call of vsfix in a block of the guide that is to be typed: one without a language, or a workflow."""
    blocks = [block for page in PAGES for block in page.read_text().split("\n```")[1::2]]
    typed = [block for block in blocks if block.startswith(("\n", "yaml\n"))]
    called = re.compile(r"^(?:torchrun .* | *(?:- )?(?:run: )?)(vsfix [a-z]+(?: [^|#\n]*)?)", re.MULTILINE)
    return list(dict.fromkeys(line.strip() for block in typed for line in called.findall(block)))


def test_the_guide_has_commands_of_every_kind():
    shown = {line.split()[1] for line in commands()}
    assert {"train", "export", "inspect", "optimize", "verify", "build", "package", "reproduce"} <= shown
    assert any("torchrun" in page.read_text() for page in PAGES)


@pytest.mark.parametrize("line", commands())
def test_every_command_of_the_guide_has_options_that_exist(line):
    from click.testing import CliRunner

    from vsfix.pipeline.cli.main import vsfix

    words = shlex.split(line)[1:]
    result = CliRunner().invoke(vsfix, [words[0], "--help"], prog_name="vsfix")
    assert result.exit_code == 0, words[0]
    for option in (word for word in words[1:] if re.match(r"--?[a-z]", word)):
        assert re.search(rf"(^|\s|,){re.escape(option)}\b", result.output), f"{words[0]} has no {option}"


def named_tests(page: str) -> list[str]:
    """The test files that a page names; a bare name stands in the folder of the one before it."""
    folder, files = "", []
    for name in re.findall(r"`((?:tests/[\w/]*)?test_\w+\.py)`", page):
        folder = name.rpartition("/")[0] or folder
        files.append(name if "/" in name else f"{folder}/{name}")
    return files


def test_the_tests_that_stand_behind_a_promise_are_there():
    named = {page.name: named_tests(page.read_text()) for page in PAGES}
    assert len(named["security.md"]) >= 10
    assert [(page, file) for page, files in named.items() for file in files if not (ROOT / file).is_file()] == []


def test_the_bill_of_materials_names_the_pinned_versions():
    pinned = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line)
    pinned = {name.lower().replace("_", "-"): version for name, version in pinned.items()}
    bill = json.loads((ROOT / "docs" / "sbom.cdx.json").read_text())
    parts = {part["name"].lower().replace("_", "-"): part["version"] for part in bill["components"]}
    assert {"numpy", "onnx", "onnxruntime", "protobuf"} <= set(parts)
    assert [name for name, version in parts.items() if pinned.get(name) != version] == []
    page = (ROOT / "docs" / "security.md").read_text()
    assert [part["name"] for part in bill["components"] if f"| {part['name']} | {part['version']} |" not in page] == []
