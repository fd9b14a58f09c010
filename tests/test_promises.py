"""What vsfix promises about the world outside its outputs (docs/security.md), seen by Python's audit events."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

TESTS = Path(__file__).parent
FONT_TOOLS = (
    "ldconfig",
    "fc-list",
    "uname",
    "lscpu",
    "nvidia-smi",
)  # what matplotlib and the description of the machine ask
NETWORK = "--model preresnet-8 --data digits --noise dropout:0.5 --site a --samples 600 --epochs 10"
CHAIN = [
    f"train {NETWORK} -o out/run",
    "export out/run -o out/net.onnx",
    "inspect out/net.onnx --data digits --html out/inspect.html",
    "optimize out/net.onnx --data digits --samples 32 --eval-data digits -o out/repaired.onnx --html out/optimize.html",
    "verify out/repaired.onnx --against out/net.onnx --data digits",
    "benchmark out/net.onnx out/repaired.onnx --data digits --backend onnxruntime --repair none --seconds 0.1 --json out/b.json --html out/b.html",
    "compare out/b.json out/b.json",
    "package out/repaired.onnx -o out/repository",
]


@dataclass
class Audited:
    """A folder, the commands that ran in it, and what they did outside of Python.

    Attributes:
        exit_codes: of the commands.
        events: (kind, what), see `audited_commands`.
        output: both streams.
    """

    exit_codes: list[int]
    events: list[tuple[str, str]]
    output: str

    def of(self, kind: str) -> list[str]:
        return [what for event, what in self.events if event == kind]


def run_audited(folder: Path, commands: list[list[str]]) -> Audited:
    """Runs commands in a folder with a home and a folder for temporary files of its own."""
    for name in ("home", "scratch", "out"):
        (folder / name).mkdir(exist_ok=True)
    own = {"HOME": str(folder / "home"), "TMPDIR": str(folder / "scratch"), "MPLCONFIGDIR": str(folder / "scratch")}
    # torch writes the folder of its compiler into the environment of a process that has once looked for it.
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("TORCHINDUCTOR_")}
    script = [sys.executable, str(TESTS / "audited_commands.py"), "events.json", json.dumps(commands)]
    done = subprocess.run(
        script, cwd=folder, env=inherited | own, capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr
    seen = json.loads((folder / "events.json").read_text())
    return Audited(seen["exit_codes"], [tuple(event) for event in seen["events"]], done.stdout + done.stderr)


def written_outside(audited: Audited, folder: Path) -> list[str]:
    """Paths that were written and lie neither among the outputs nor in the folder for temporary files."""
    inside = (str(folder / "out"), str(folder / "scratch"), os.devnull)
    return [path for path in audited.of("write") if not path.startswith(inside)]


@pytest.fixture(scope="module")
def chain(tmp_path_factory):
    folder = tmp_path_factory.mktemp("chain")
    return folder, run_audited(folder, [command.split() for command in CHAIN])


@pytest.mark.long
def test_the_chain_talks_to_nobody(chain):
    _, audited = chain
    assert len(audited.exit_codes) == len(CHAIN)
    assert set(audited.exit_codes) <= {0, 1}, audited.output
    assert audited.of("network") == []


def test_the_chain_writes_its_outputs_and_nothing_else(chain):
    folder, audited = chain
    assert str(folder / "out" / "repaired.onnx") in audited.of("write")
    assert written_outside(audited, folder) == []
    assert list((folder / "home").iterdir()) == []


def test_the_chain_starts_no_program_but_those_that_look_at_the_machine(chain):
    _, audited = chain
    assert [what for what in audited.of("process") if not any(tool in what for tool in FONT_TOOLS)] == []


def test_the_chain_leaves_no_temporary_file(chain):
    folder, _ = chain
    assert [path for path in (folder / "out").rglob("*") if ".part" in path.name] == []


class Payload:
    """Unpickled by the book, it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.fixture(scope="module")
def hostile(chain, tmp_path_factory):
    """Files of every kind that hold code or point outside their folder, each given to a command that reads it."""
    folder = tmp_path_factory.mktemp("hostile")
    loot = folder / "loot"
    (folder / "net.onnx").write_bytes((chain[0] / "out" / "net.onnx").read_bytes())
    torch.save({"format": "vsfix checkpoint", "version": 1, "model": Payload(loot)}, folder / "checkpoint.pt")
    np.savez(folder / "data.npz", input=np.array([Payload(loot)], dtype=object))
    (folder / "engine.plan").write_bytes(b"ptrt" + bytes(64))
    for name in ("train", "test", "meta"):
        (folder / name).write_bytes(pickle.dumps(Payload(loot)))
    commands = [
        "export checkpoint.pt -o out/a.onnx",
        "inspect net.onnx --data data.npz",
        "optimize net.onnx --data data.npz -o out/b.onnx",
        "verify engine.plan --against net.onnx --data digits",
        f"train {NETWORK.replace('digits', 'cifar100:.')} -o out/run",
    ]
    before = digests(folder)
    audited = run_audited(folder, [command.split() for command in commands])
    return folder, audited, before


def digests(folder: Path) -> dict[str, str]:
    """What stands in the files of a folder."""
    files = [path for path in folder.iterdir() if path.is_file() and path.name != "events.json"]
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_hostile_files_are_refused_and_nothing_in_them_runs(hostile):
    folder, audited, _ = hostile
    assert not (folder / "loot").exists()
    assert audited.of("unpickle") == []
    assert audited.exit_codes == [2] * 5, audited.output
    assert "Traceback" not in audited.output


def test_hostile_files_stay_as_they_were_and_leave_no_output(hostile):
    folder, audited, before = hostile
    assert digests(folder) == before
    assert written_outside(audited, folder) == []
    assert list((folder / "out").iterdir()) == []


@pytest.mark.parametrize(
    ("kind", "code"),
    [
        ("network", "import socket; s = socket.socket(); s.settimeout(0.1); s.connect_ex(('127.0.0.1', 9)); s.close()"),
        ("network", "import socket; socket.getaddrinfo('localhost', 80)"),
        ("write", "open('stray', 'w').close()"),
        ("write", "import os; os.close(os.open('stray', os.O_CREAT | os.O_WRONLY))"),
        ("process", "import subprocess; subprocess.run(['true'])"),
        ("unpickle", "import pickle, collections; pickle.loads(pickle.dumps(collections.OrderedDict()))"),
    ],
)
def test_the_audit_sees_what_is_planted(kind, code, tmp_path):
    audited = run_audited(tmp_path, [["python", code]])
    assert audited.of(kind)
    assert bool(written_outside(audited, tmp_path)) == (kind == "write")
