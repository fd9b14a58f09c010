from __future__ import annotations

import os
import shutil
import subprocess
import sys

import pytest

from vsfix.graph_passes.noise.noise import Noise
from vsfix.pipeline.backends import opening
from vsfix.pipeline.cli import completion
from vsfix.pipeline.cli.main import SUMMARIES
from vsfix.pipeline.comparison.metric import METRICS
from vsfix.pipeline.repair import repair_config
from vsfix.pipeline.reproduction.experiments import EXPERIMENTS
from vsfix.trainers.layers.noise_sites import NoiseSites
from vsfix.trainers.networks.network import NetworkConfig, network_builder
from vsfix.trainers.training.recipes import RECIPES


def complete(call, line: str, folder) -> list[str]:
    """What a shell is told for a line that ends where the cursor stands, in a folder."""
    words = line.split(" ")
    script = (
        "import os, sys; from vsfix.pipeline.cli.main import vsfix\n"
        "try: vsfix(prog_name='vsfix')\n"
        "finally: print({'numpy', 'onnx', 'torch', 'rich'} & set(sys.modules), file=sys.stderr)"
    )
    environment = {"COMP_WORDS": line, "COMP_CWORD": str(len(words) - 1), "_VSFIX_COMPLETE": "bash_complete"}
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
        cwd=folder,
    )
    assert done.stderr == "set()\n"  # a key that is pressed can't wait for a library
    return done.stdout.split()


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("vsfix ", [f"plain,{name}" for name in SUMMARIES]),
        ("vsfix opt", ["plain,optimize"]),
        ("vsfix optimize --max-l", ["plain,--max-loss"]),
        ("vsfix optimize m.onnx --method ma", ["plain,match"]),
        ("vsfix optimize m.onnx --precision f", ["plain,fp32", "plain,fp16", "plain,fp8"]),
        ("vsfix verify m.onnx --backend onnxruntime-c", ["plain,onnxruntime-cuda"]),
        ("vsfix benchmark m.onnx --metric to", ["plain,top1", "plain,top5"]),
        ("vsfix reproduce uout fig", ["plain,figure1"]),
        ("vsfix optimize ", ["file,"]),
        ("vsfix optimize m.onnx -o ", ["file,"]),
        ("vsfix export ", ["file,"]),
        ("vsfix inspect m.onnx --data ro", ["file,ro"]),
        ("vsfix inspect m.onnx --data di", ["plain,digits", "plain,digits.npz"]),
    ],
)
def test_a_shell_is_told_what_may_follow(call, tmp_path, line, expected):
    (tmp_path / "digits.npz").touch()
    (tmp_path / "rows.npz").touch()
    assert complete(call, line, tmp_path) == expected


@pytest.mark.skipif(shutil.which("bash") is None, reason="bash is not installed")
def test_bash_completes_by_the_line_that_the_guide_gives(tmp_path):
    (tmp_path / "vsfix").write_text(
        f"#!/bin/sh\nexec {sys.executable} -c 'from vsfix.pipeline.cli.main import main; main()'\n"
    )
    (tmp_path / "vsfix").chmod(0o755)
    script = (
        'eval "$(_VSFIX_COMPLETE=bash_source vsfix)"; complete -p vsfix; '
        'COMP_WORDS=(vsfix bench); COMP_CWORD=1; _vsfix_completion vsfix; echo "${COMPREPLY[*]}"'
    )
    environment = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = subprocess.run(["bash", "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["complete -o nosort -F _vsfix_completion vsfix", "benchmark"]


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_other_shells_get_a_script(call, shell):
    environment = os.environ | {"_VSFIX_COMPLETE": f"{shell}_source"}
    script = "from vsfix.pipeline.cli.main import main; main()"
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert f"_VSFIX_COMPLETE={shell}_complete" in done.stdout


def test_the_words_are_those_of_the_rooms():
    assert set(completion.BACKENDS) == set(opening.BACKENDS)
    assert tuple(METRICS) == completion.METRICS
    assert completion.METHODS == repair_config.METHODS
    assert set(completion.RECIPES) == set(RECIPES)
    assert (*EXPERIMENTS, "all") == completion.TABLES
    for noise in completion.NOISES:
        assert str(Noise.parse(noise)) == noise
    assert completion.PRECISIONS == repair_config.PRECISIONS
    for name in completion.NETWORKS:
        assert network_builder(NetworkConfig(name, 3, (32, 32), 10, NoiseSites()))
