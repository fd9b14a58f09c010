"""What becomes of an error: one line, an exit code, and nothing lost."""

from __future__ import annotations

import errno
import json
import os
import re
import shlex
import signal
import subprocess
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from vsfix.graph_passes.errors import BuildError, MissingComponentError

from .command_lines import one_line, run_script, train, verify


def npz(path: Path, **arrays) -> Path:
    np.savez(path, **arrays)
    return path


IMAGES = np.zeros((3, 1, 8, 8), np.float32)


NAN = np.where(np.arange(3)[:, None, None, None] == 1, np.float32("nan"), IMAGES)


BAD_INPUTS = {
    "model missing": (lambda p: ["verify", p / "gone.onnx", "--against", p / "ok.onnx"], "gone.onnx: no such file"),
    "reference missing": (lambda p: ["verify", p / "ok.onnx", "--against", p / "gone.pt"], "gone.pt: no such file"),
    "not an ONNX": (lambda p: ["verify", p / "text.onnx", "--against", p / "ok.onnx"], "is not an ONNX file"),
    "empty file": (lambda p: ["verify", p / "empty.onnx", "--against", p / "ok.onnx"], "is not an ONNX file"),
    "not a checkpoint": (
        lambda p: ["verify", p / "ok.onnx", "--against", p / "text.pt"],
        "can't be read as a checkpoint",
    ),
    "data missing": (lambda p: verify(p, p / "gone.npz"), "gone.npz: no such file"),
    "data unknown": (lambda p: verify(p, "imagenet"), "'imagenet': unknown"),
    "data of another kind": (lambda p: verify(p, npz(p / "d.npz", x=IMAGES)), "no array 'input'"),
    "wrong shape": (
        lambda p: verify(p, npz(p / "d.npz", input=IMAGES[:, :, :4])),
        "samples of 1x4x8, the model takes 1x8x8",
    ),
    "wrong rank": (lambda p: verify(p, npz(p / "d.npz", input=IMAGES[0])), "samples of 8x8, the model takes 1x8x8"),
    "wrong dtype": (lambda p: verify(p, npz(p / "d.npz", input=IMAGES.astype(complex))), "numbers are needed"),
    "NaN": (lambda p: verify(p, npz(p / "d.npz", input=NAN)), "is not finite in 1 of 3 samples, the first is sample 1"),
    "empty data": (lambda p: verify(p, npz(p / "d.npz", input=IMAGES[:0])), "holds no sample"),
    "no npz": (lambda p: verify(p, npz_of_text(p)), "is not an .npz file"),
    "label too large": (
        lambda p: verify(p, npz(p / "d.npz", input=IMAGES, labels=np.array([1, 2, 10]))),
        "the label of sample 2 is 10",
    ),
    "output exists": (lambda p: ["export", p / "run.pt", "-o", p / "ok.onnx"], "exists already; pass --force"),
    "output folder missing": (lambda p: ["export", p / "run.pt", "-o", p / "no" / "m.onnx"], "does not exist"),
    "output is a folder": (lambda p: ["export", p / "run.pt", "-o", p, "--force"], "is a folder"),
    "output is the input": (lambda p: ["export", p / "run.pt", "-o", p / "run.pt", "--force"], "is an input"),
    "JSON exists": (lambda p: ["doctor", "--json", p / "text.onnx"], "exists already; pass --force"),
    "JSON is the model": (
        lambda p: ["verify", p / "ok.onnx", "--against", p / "run.pt", "--json", p / "ok.onnx", "--force"],
        "is an input",
    ),
    "source missing": (lambda p: ["export", p / "gone.pt", "-o", p / "m.onnx"], "gone.pt: no such file"),
    "opset too old": (lambda p: ["export", p / "run.pt", "-o", p / "m.onnx", "--opset", 9], "opset 9"),
    "noise unknown": (lambda p: train(p, "--noise", "gauss:1"), "kind must be one of"),
    "model unknown": (lambda p: train(p, "--model", "vgg"), "must be preresnet-<depth>, wrn-<depth>-<widen>"),
    "no epochs": (lambda p: train(p, "--epochs", 0), "epochs must be"),
}


def npz_of_text(folder):
    path = folder / "d.npz"
    path.write_text("no zip")
    return path


@pytest.mark.parametrize("case", BAD_INPUTS)
def test_bad_input_is_one_line_and_leaves_no_file(call, tmp_path, onnx_path, checkpoint_path, case):
    for source, name in ((onnx_path, "ok.onnx"), (checkpoint_path, "run.pt")):
        (tmp_path / name).write_bytes(source.read_bytes())
    for name, content in (("text.onnx", "text"), ("text.pt", "text"), ("empty.onnx", "")):
        (tmp_path / name).write_text(content)
    arguments, words = BAD_INPUTS[case]
    arguments = arguments(tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert words in one_line(call(*arguments), 2)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(("error", "code"), [(MissingComponentError("x"), 3), (BuildError("x"), 4)])
def test_an_error_ends_with_its_own_exit_code(call, monkeypatch, error, code):
    monkeypatch.setattr("vsfix.pipeline.backends.doctor.check_backends", raiser(error))
    assert one_line(call("doctor"), code) == "vsfix: error: x"


def raiser(error: BaseException):
    def function(*_, **__):
        raise error

    return function


def test_a_missing_library_is_named_with_the_line_that_installs_it(call, monkeypatch):
    error = ModuleNotFoundError("No module named 'torch'", name="torch")
    monkeypatch.setattr("vsfix.pipeline.backends.doctor.check_backends", raiser(error))
    assert one_line(call("doctor"), 3).endswith("torch is not installed; run: pip install 'vsfix[train]'")


@pytest.mark.parametrize("name", ["matplotlib", "PIL.Image"])
def test_a_requirement_that_is_missing_is_named_with_the_line_that_brings_it_back(call, monkeypatch, name):
    error = ModuleNotFoundError(f"No module named '{name}'", name=name)
    monkeypatch.setattr("vsfix.pipeline.backends.doctor.check_backends", raiser(error))
    assert one_line(call("doctor"), 3) == f"vsfix: error: {name} is not installed; run: pip install vsfix"


def test_a_module_of_our_own_that_is_missing_is_a_bug(call, monkeypatch):
    error = ModuleNotFoundError("No module named 'vsfix.pipeline.gone'", name="vsfix.pipeline.gone")
    monkeypatch.setattr("vsfix.pipeline.backends.doctor.check_backends", raiser(error))
    assert call("doctor").exit_code == 70


def test_a_bug_shows_its_traceback(call, monkeypatch):
    monkeypatch.setattr("vsfix.pipeline.backends.doctor.check_backends", raiser(ZeroDivisionError("oh\nno")))
    result = call("doctor")
    assert result.exit_code == 70
    assert result.stderr.startswith("Traceback")
    assert result.stderr.splitlines()[-1] == "vsfix: internal error: ZeroDivisionError: oh no"


def test_verbose_says_where_an_error_came_from(call, tmp_path):
    result = call("-vv", "verify", tmp_path / "gone.onnx", "--against", tmp_path / "gone.onnx")
    assert "Traceback" in result.stderr
    assert result.stderr.splitlines()[-1].startswith("vsfix: error: ")


def test_an_interrupt_is_one_line(call, monkeypatch):
    monkeypatch.setattr("vsfix.pipeline.backends.doctor.check_backends", raiser(KeyboardInterrupt()))
    result = call("doctor")
    assert (result.exit_code, result.stdout, result.stderr) == (130, "", "vsfix: interrupted\n")


def test_a_signal_that_a_library_makes_into_an_error_of_its_own_is_still_told_as_one(call, monkeypatch):
    def load_library():
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(1)
        except BaseException as error:  # as the loader of a module in C++ does
            raise MissingComponentError("onnxruntime is not installed") from error

    monkeypatch.setattr("vsfix.pipeline.backends.doctor.check_backends", load_library)
    result = call("doctor")
    assert (result.exit_code, result.stderr) == (143, "vsfix: stopped by SIGTERM\n")


@pytest.mark.long
def test_ctrl_c_in_a_real_process_ends_in_one_line(tmp_path):
    command = run_script("train", "--model", "mlp-1", "--data", "digits", "--epochs", 9999, "-o", tmp_path / "run")
    alone = {**os.environ, "OMP_NUM_THREADS": "1"}  # several threads would wait for each other on a busy machine
    heard = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # what a shell starts in the background ignores it
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=alone, preexec_fn=heard)
    deadline = time.monotonic() + 120
    while not (tmp_path / "run" / "metrics.csv").exists():
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    last = process.communicate(timeout=60)[1].splitlines()[-1]
    where = r"(in epoch \d+, step \d of 10|after epoch \d+ of 9999)"
    assert re.fullmatch(rf"vsfix: error: training: stopped {where}; saved, the same .* there", last)
    assert process.returncode == 130
    assert not [path for path in (tmp_path / "run").iterdir() if ".part" in path.name]


@pytest.mark.long
def test_a_reader_that_goes_away_is_no_error():
    with subprocess.Popen(run_script("doctor"), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        process.stdout.close()
        assert process.stderr is not None
        assert process.stderr.read() == ""


def test_a_name_of_any_length_makes_a_line_that_can_be_read(call, tmp_path):
    result = call("inspect", str(tmp_path / ("a" * 200) / ("b" * 5000)))
    assert result.exit_code == 2
    assert len(result.stderr.strip().splitlines()) == 1
    assert len(result.stderr) < 1000
    assert result.stderr.startswith("vsfix: error: ")


LONG = "n" * 300  # bytes; file systems hold 255


UNREADABLE_NAMES = {
    "model": ("inspect", LONG),
    "output": ("optimize", "{net}", "--data", "{data}", "-o", LONG),
    "data": ("inspect", "{net}", "--data", LONG + ".npz"),
    "folder of images": ("inspect", "{net}", "--data", "imagefolder:" + LONG),
    "source": ("export", LONG, "-o", "{folder}/x.onnx"),
    "reference": ("verify", "{net}", "--against", LONG),
    "repository": ("package", "{net}", "-o", LONG),
    "folder": ("demo", "-o", LONG),
    "engine": ("package", LONG + ".plan", "-o", "{folder}/x"),
    "nobody's home": ("inspect", "{net}", "--data", "~nobody-of-this-name/d.npz"),
    "folder of no one": ("inspect", "{net}", "--data", "imagefolder:~nobody-of-this-name"),
    "no data": ("inspect", "{net}", "--data", ""),
    "seed": ("optimize", "{net}", "--method", "match", "--dry-run", "--seed", str(1 << 64)),
    "no labelled data": ("optimize", "{net}", "--eval-data", "", "--dry-run"),
}


@pytest.mark.parametrize("case", UNREADABLE_NAMES)
def test_a_name_that_no_file_can_have_is_one_line(call, tmp_path, onnx_path, npz_path, case):
    known = {"net": onnx_path, "data": npz_path, "folder": tmp_path}
    line = one_line(call(*(word.format(**known) for word in UNREADABLE_NAMES[case])), 2)
    assert len(line) < 1000


def test_what_the_system_refuses_is_one_line_and_its_place_is_told_where_asked_for(call, monkeypatch):
    error = PermissionError(errno.EACCES, "Permission denied", "/root/net.onnx")
    monkeypatch.setattr("vsfix.pipeline.backends.doctor.check_backends", raiser(error))
    assert one_line(call("doctor"), 2) == "vsfix: error: /root/net.onnx: Permission denied"
    assert "Traceback" in call("-vv", "doctor").stderr


@pytest.mark.long
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="only Linux has such a device")
@pytest.mark.parametrize(("where", "code"), [("> /dev/full", 2), ("2> /dev/full", 0), (">&-", 0), ("2>&-", 0)])
def test_a_stdout_that_is_full_or_closed_is_no_bug(onnx_path, where, code):
    command = f"{shlex.join(run_script('inspect', onnx_path))} {where}"
    result = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=False)
    assert result.returncode == code, result.stderr
    assert result.stderr == ("vsfix: error: No space left on device\n" if code else "")


WITH_FILES = {
    "inspect": ("inspect", "{net}", "--html", "{folder}/page.html"),
    "optimize": ("optimize", "{net}", "--method", "none", "-o", "{folder}/out.onnx"),
    "verify": ("verify", "{net}", "--against", "{net}", "--samples", "8"),
    "benchmark": ("benchmark", "{net}", "--data", "digits", "--samples", "50", "--seconds", "0", "--repair", "none"),
}


@pytest.mark.long
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="only Linux has such a device")
@pytest.mark.parametrize("name", WITH_FILES)
def test_the_files_are_written_where_nothing_can_be_printed(onnx_path, tmp_path, name):
    words = [word.format(net=onnx_path, folder=tmp_path) for word in WITH_FILES[name]]
    command = f"{shlex.join(run_script(*words, '--json', tmp_path / 'result.json'))} > /dev/full"
    assert subprocess.run(["sh", "-c", command], check=False, capture_output=True).returncode == 2
    assert json.loads((tmp_path / "result.json").read_text())["schema_version"] == 1
    assert "{folder}/page.html" not in WITH_FILES[name] or (tmp_path / "page.html").exists()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="only Linux has such a device")
def test_an_error_that_can_not_be_told_keeps_its_exit_code(tmp_path):
    command = f"{shlex.join(run_script('inspect', tmp_path / 'gone.onnx'))} 2> /dev/full"
    assert subprocess.run(["sh", "-c", command], check=False).returncode == 2


def test_memory_that_ends_is_one_line(call, monkeypatch):
    monkeypatch.setattr("vsfix.pipeline.backends.doctor.check_backends", raiser(MemoryError("8.00 TiB for an array")))
    result = call("doctor")
    assert result.exit_code == 2
    assert re.fullmatch(r"vsfix: error: not enough memory here \(8\.00 TiB for an array\); give .*\n", result.stderr)
