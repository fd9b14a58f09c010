from __future__ import annotations

import importlib
import json
import os
import re
import subprocess
import sys
from importlib.metadata import version

import click
import onnx
import pytest

from vsfix.pipeline.cli.main import SUMMARIES, vsfix

from .command_lines import one_line, run_script

# Adding an option is a decision: it edits this table too.
OPTIONS = {
    "demo": "--force --json --output",
    "train": "--accumulate --augment --average --batch-size --compile --data --epochs --force --image-size --json "
    "--label-smoothing --log-shift --lr --model --noise --output --precision --recipe --samples --save-every --schedule "
    "--seed --site --sync-batchnorm --tensorboard --weight-decay --width --workers",
    "export": "--class-names --force --input --input-shape --json --mean --opset --output --size --std --weights --weights-key "
    "SOURCE",
    "inspect": "--batch-size --data --force --html --json --mean --noise --output-kind --samples --seed --size --std MODEL",
    "optimize": "--batch-size --data --dry-run --eval-data --eval-split --fold --force --html --input-shape --json "
    "--keep-metric --layers --max-loss --max-memory --mean --method --metric --metric-output --noise --output --output-kind --precision --refine "
    "--samples --seed --size --statistics --std MODEL",
    "build": "--force --json --max-shapes --min-shapes --opt-shapes --output --precision --runtime --shapes "
    "--target --timing-cache --workspace MODEL",
    "package": "--compute-capability --device --force --json --kserve --max-batch-size --max-queue-delay --name --output "
    "--storage-uri --version MODEL|ENGINE...",
    "verify": "--against --backend --batch-size --data --force --json --layers --max-accuracy-loss --mean "
    "--min-agreement --min-snr --reference-backend --samples --seed --size --split --statistics --std --trust --via "
    "--weights --weights-key MODEL",
    "benchmark": "--backend --batch --batch-size --calibration --data --force --html --json --mean --metric --metric-output "
    "--precision --predictions --repair --samples --seconds --seed --size --split --std MODEL...",
    "compare": "--fail-on --force --json A.json B.json",
    "reproduce": "--cpus --data --dry-run --epochs --force --gpus --json --output --precision --ray --samples --scale --seeds TABLE...",
    "doctor": "--force --install --json",
}


def module_of(name: str):
    return importlib.import_module(f"vsfix.pipeline.cli.commands.{name}")


def test_the_commands_and_their_options_are_these():
    found = {}
    for name in SUMMARIES:
        parameters = [
            max(parameter.opts, key=len) if isinstance(parameter, click.Option) else parameter.human_readable_name
            for parameter in module_of(name).command.params
            if parameter.name != "verbose"  # every command has it: see below
        ]
        found[name] = " ".join(sorted(parameters))
    assert found == OPTIONS


@pytest.mark.parametrize("name", SUMMARIES)
def test_every_command_takes_the_v_that_the_group_takes(name):
    options = [option for option in module_of(name).command.params if option.name == "verbose"]
    assert [option.opts for option in options] == [["-v", "--verbose"]]
    assert vsfix.params[-1].opts == options[0].opts


@pytest.mark.parametrize(
    ("before", "after", "levels"),
    [
        ((), (), set()),
        (("-v",), (), {"INFO"}),
        ((), ("-v",), {"INFO"}),
        (("-v",), ("-v",), {"INFO", "DEBUG"}),
        (("-vv",), (), {"INFO", "DEBUG"}),
        ((), ("-vv",), {"INFO", "DEBUG"}),
        ((), ("--verbose", "--verbose", "-v"), {"INFO", "DEBUG"}),
    ],
)
def test_v_means_the_same_before_and_after_the_command(call, onnx_path, before, after, levels):
    result = call(*before, "inspect", onnx_path, *after)
    assert result.exit_code == 0
    assert {line.split(": ")[1] for line in result.stderr.splitlines()} == levels
    assert ("vsfix: INFO: reading network.onnx" in result.stderr) == bool(levels)
    assert call("inspect", onnx_path).stderr == ""  # what was said is over with the command


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
        (["export", "a:b", "-o", "x.onnx"], "a factory needs --input, as image:Nx3x32x32"),
        (["export", "a:b", "-o", "x.onnx", "--input-shape", "3x0x2"], "without the batch, as 3x32x32"),
        (["export", "a.pt", "-o", "x.onnx", "--weights", "w.pt"], "go with package.module:factory"),
        (["export", "a:b", "-o", "x.onnx", "--input-shape", "6", "--input", "x:Nx6"], "a factory needs --input, as"),
        (["export", "a:b", "-o", "x.onnx", "--input", "x:Nx6", "--mean", "a,b"], "write numbers as 0.485"),
        (["export", "a:b", "-o", "x.onnx", "--input", "x:Nx6", "--size", "8y8"], "write height and width as 224x224"),
        (["verify", "m.onnx", "--against", "n.onnx", "--weights", "w.pt"], "go with --against package.module:factory"),
    ],
)
def test_wrong_usage_is_one_line_with_the_way_to_the_help(call, arguments, words):
    line = one_line(call(*arguments), 2)
    assert words in line
    assert "--help`" in line


def test_the_backend_that_a_notebook_names_for_its_own_figures_stops_no_page(onnx_path, tmp_path):
    notebook = {**os.environ, "MPLBACKEND": "module://matplotlib_inline.backend_inline"}
    command = run_script("inspect", onnx_path, "--html", tmp_path / "page.html")
    result = subprocess.run(command, env=notebook, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr) == (0, "")
    assert "</html>" in (tmp_path / "page.html").read_text()


@pytest.mark.long
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
    assert "pip install 'vsfix[gpu]'" in result.stdout or re.search("onnxruntime-cuda +PASS", result.stdout)
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
