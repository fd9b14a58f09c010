from __future__ import annotations

import errno
import importlib
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from functools import partial
from importlib.metadata import version
from pathlib import Path

import click
import numpy as np
import onnx
import pytest

from vsfix.graph_passes.errors import BuildError, MissingComponentError
from vsfix.pipeline.cli.main import SUMMARIES, vsfix

# Adding an option is a decision: it edits this table too.
OPTIONS = {
    "demo": "--force --output",
    "train": "--accumulate --augment --average --batch-size --compile --data --epochs --force --image-size "
    "--label-smoothing --log-shift --lr --model --noise --output --precision --recipe --samples --save-every --schedule "
    "--seed --site --sync-batchnorm --tensorboard --weight-decay --width --workers",
    "export": "--force --input-shape --opset --output --weights SOURCE",
    "inspect": "--batch-size --data --force --html --json --noise --output-kind --samples --seed MODEL",
    "optimize": "--batch-size --data --dry-run --eval-data --eval-split --fold --force --html --input-shape --json --layers "
    "--max-loss --max-memory --method --noise --output --output-kind --precision --refine --samples --seed --statistics MODEL",
    "build": "--force --json --max-shapes --min-shapes --opt-shapes --output --precision --runtime --shapes "
    "--target --timing-cache --workspace MODEL",
    "package": "--compute-capability --device --force --json --kserve --max-batch-size --max-queue-delay --name --output "
    "--storage-uri --version MODEL|ENGINE...",
    "verify": "--against --backend --batch-size --data --force --json --layers --max-accuracy-loss --min-agreement "
    "--min-snr --reference-backend --samples --seed --split --statistics --trust --via MODEL",
    "benchmark": "--backend --batch --batch-size --calibration --data --force --html --json --precision --predictions "
    "--repair --samples --seconds --seed --split MODEL...",
    "compare": "--fail-on --force --json A.json B.json",
    "reproduce": "--cpus --data --dry-run --epochs --gpus --output --precision --ray --samples --scale --seeds TABLE...",
    "doctor": "--force --install --json",
}


def one_line(result, code: int) -> str:
    """The only line on stderr, of a call that ended with `code` and printed nothing."""
    assert result.exit_code == code, result.output
    assert result.stdout == ""
    lines = result.stderr.splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("vsfix: error: ")
    return lines[0]


def module_of(name: str):
    return importlib.import_module(f"vsfix.pipeline.cli.commands.{name}")


def test_the_commands_and_their_options_are_these():
    found = {}
    for name in SUMMARIES:
        parameters = [
            max(parameter.opts, key=len) if isinstance(parameter, click.Option) else parameter.human_readable_name
            for parameter in module_of(name).command.params
        ]
        found[name] = " ".join(sorted(parameters))
    assert found == OPTIONS


@pytest.mark.parametrize("name", SUMMARIES)
def test_every_command_has_its_name_and_a_help_text(call, name):
    result = call(name, "--help")
    assert result.exit_code == 0
    assert result.stdout.startswith(f"Usage: vsfix {name} ")
    assert module_of(name).command.name == name


def test_the_help_lists_every_command_without_importing_one(call):
    script = (
        "import sys; from vsfix.pipeline.cli.main import vsfix; vsfix(['--help'], standalone_mode=False); "
        "heavy = {'numpy', 'onnx', 'torch', 'onnxruntime', 'rich', 'matplotlib'} & set(sys.modules); "
        "heavy |= {name for name in sys.modules if name.startswith('vsfix.pipeline.cli.commands')}; print('heavy:', heavy)"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert "heavy: set()" in result.stdout
    for name, summary in SUMMARIES.items():
        assert f"  {name}" in result.stdout
        assert summary in result.stdout


def test_the_version_is_that_of_the_package(call):
    assert version("vsfix") in call("--version").stdout


def test_no_command_shows_the_help_and_is_no_success(call):
    result = call()
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith("Usage: vsfix")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["bogus"], "No such command 'bogus'"),
        (["optimise"], "No such command 'optimise'. Did you mean 'optimize'?"),
        (["--bogus"], "No such option"),
        (["verify"], "Missing argument 'MODEL'"),
        (["reproduce", "uout", "-o", "x", "--gpus", "1"], "they go with --ray"),
        (["train", "--model", "mlp-1", "--data", "digits", "-o", "x", "--image-size", "64"], "images of its own size"),
        (["verify", "m.onnx"], "Missing option '--against'"),
        (["verify", "m", "--against", "n", "--samples", "0"], "--samples"),
        (["train", "--model", "mlp-1", "--data", "digits", "-o", "x", "--site", "z"], "--site"),
        (["export", "a:b", "-o", "x.onnx"], "a factory needs --input-shape"),
        (["export", "a:b", "-o", "x.onnx", "--input-shape", "3x0x2"], "without the batch, as 3x32x32"),
        (["export", "a.pt", "-o", "x.onnx", "--weights", "w.pt"], "go with package.module:factory"),
    ],
)
def test_wrong_usage_is_one_line_with_the_way_to_the_help(call, arguments, words):
    line = one_line(call(*arguments), 2)
    assert words in line
    assert "--help`" in line


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
    "wrong shape": (lambda p: verify(p, npz(p / "d.npz", input=IMAGES[:, :, :4])), "float32 (3, 1, 4, 8) was given"),
    "wrong rank": (lambda p: verify(p, npz(p / "d.npz", input=IMAGES[0])), "float32 (1, 8, 8) was given"),
    "wrong dtype": (lambda p: verify(p, npz(p / "d.npz", input=IMAGES.astype(float))), "float64"),
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


def verify(folder, data):
    return ["verify", folder / "ok.onnx", "--against", folder / "run.pt", "--data", data]


def train(folder, *arguments):
    return ["train", "--model", "mlp-1", "--data", "digits", "-o", folder / "training", *arguments]


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


def run_script(*arguments: object) -> list[str]:
    return [sys.executable, "-c", "from vsfix.pipeline.cli.main import main; main()", *map(str, arguments)]


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


def test_the_backend_that_a_notebook_names_for_its_own_figures_stops_no_page(onnx_path, tmp_path):
    notebook = {**os.environ, "MPLBACKEND": "module://matplotlib_inline.backend_inline"}
    command = run_script("inspect", onnx_path, "--html", tmp_path / "page.html")
    result = subprocess.run(command, env=notebook, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr) == (0, "")
    assert "</html>" in (tmp_path / "page.html").read_text()


def test_json_on_stdout_is_alone_there(call, onnx_path, checkpoint_path):
    result = call("verify", onnx_path, "--against", checkpoint_path, "--data", "digits", "--samples", 50, "--json", "-")
    assert result.exit_code == 0
    document = json.loads(result.stdout)
    assert (document["schema_version"], document["status"]) == (1, "PASS")
    assert document["results"][0]["outputs"]["logits"]["snr_db"] > 100
    document = json.loads(call("doctor", "--json", "-").stdout)
    assert {row["name"] for row in document["backends"] if row["status"] == "PASS"} >= {"torch", "onnxruntime"}


def test_a_failed_check_prints_its_numbers_and_ends_with_one(call, onnx_path, checkpoint_path, tmp_path):
    model = onnx.load(onnx_path)
    weight = next(tensor for tensor in model.graph.initializer if tensor.name == "classifier.weight")
    weight.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(weight) * 2, weight.name))
    onnx.save(model, tmp_path / "m.onnx")
    report = tmp_path / "r.json"
    result = call("verify", tmp_path / "m.onnx", "--against", checkpoint_path, "--data", "digits", "--json", report)
    assert result.exit_code == 1
    assert f"FAIL {tmp_path / 'm.onnx'}" in result.stdout
    assert "wanted 80 dB" in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert json.loads(report.read_text())["status"] == "FAIL"


def test_the_log_is_on_stderr_and_ends_with_the_command(call, onnx_path, npz_path):
    arguments = ("verify", onnx_path, "--against", onnx_path, "--data", npz_path, "--samples", 99)
    assert [call(*arguments).stderr.count("fewer than the 99") for _ in range(2)] == [1, 1]


@pytest.mark.long
def test_the_doctor_prints_what_works_and_fails_where_nothing_does(call, monkeypatch):
    result = call("doctor")
    assert (result.exit_code, result.stderr) == (0, "")
    assert "pip install 'vsfix[gpu]'" in result.stdout or "onnxruntime-cuda     │ PASS" in result.stdout
    monkeypatch.setattr("vsfix.pipeline.backends.doctor.check_backends", lambda: ())
    result = call("doctor")
    assert (result.exit_code, result.stderr) == (
        3,
        "vsfix: error: no backend works here; run: pip install 'vsfix[cpu]'\n",
    )


def test_random_numbers_are_said_to_be_random(call, onnx_path, checkpoint_path):
    result = call("verify", onnx_path, "--against", checkpoint_path)
    assert result.exit_code == 0
    assert "SKIP decisions: the inputs are random numbers" in result.stdout


def test_training_export_and_verification_go_together(call, tmp_path):
    run, model = tmp_path / "run", tmp_path / "m.onnx"
    trained = call(
        *("train --model mlp-2 --data digits --noise dropout:0.5 --epochs 1 --samples 200".split()), "-o", run
    )
    assert trained.exit_code == 0, trained.output
    assert f"checkpoint: {run / 'checkpoint.pt'}" in trained.stdout
    resumed = call(
        *("train --model mlp-2 --data digits --noise dropout:0.5 --epochs 1 --samples 200".split()), "-o", run
    )
    assert "was finished already" in resumed.stdout
    exported = call("export", run, "-o", model)
    assert exported.exit_code == 0, exported.output
    assert "BatchNorms kept: 2\nnoise layers marked: 2\n" in exported.stdout
    verified = call(
        "verify", model, "--against", run, "--data", "digits", "--backend", "onnxruntime", "--backend", "reference"
    )
    assert verified.exit_code == 0, verified.output
    assert "top-1" in verified.stdout


def test_the_group_is_the_entry_point_of_the_script():
    assert vsfix.name == "vsfix"


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
