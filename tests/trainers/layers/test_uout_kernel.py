from __future__ import annotations

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from vsfix.trainers.layers import noise_layers
from vsfix.trainers.layers.noise_layers import Uout

pytestmark = pytest.mark.skipif(
    find_spec("triton") is None, reason="triton is not installed; pip install 'vsfix[triton]'"
)
forms = pytest.mark.parametrize("form", ["uout", "uout-bernoulli", "uout-gaussian"])


@pytest.fixture(scope="module")
def checks():
    """The results of Triton's interpreter, by the form of Uout."""
    script = Path(__file__).with_name("uout_kernel_checks.py")
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.long
@forms
def test_the_draws_have_their_distribution_and_are_independent(checks, form):
    found = checks[form]["distribution"]
    assert abs(found["mean"]) < 4
    assert found["variance"] == pytest.approx(1, abs=0.03)
    assert found["p"] > 1e-3
    assert found["correlation"] < 4
    assert (found["levels"] == 2) == (form == "uout-bernoulli")


@forms
@pytest.mark.parametrize("order", ["flat", "channels last", "transposed", "every other", "expanded", "a single number"])
def test_the_gradient_has_the_factors_of_the_forward_pass_in_any_order_of_memory(checks, form, order):
    found = checks[form]["gradients"][order]
    assert found["error"] < 1e-6
    assert found["differs"]
    assert found["order"] or order in ("every other", "expanded")


@forms
def test_another_seed_in_the_backward_pass_would_be_seen(checks, form):
    assert checks[form]["another seed in backward"] > 0.05


@forms
def test_nothing_is_kept_for_the_backward_pass(checks, form):
    assert checks[form]["kept bytes"] == 0


@forms
def test_the_gradient_can_be_differentiated(checks, form):
    assert checks[form]["second derivative"] < 1e-5


@forms
def test_the_seed_of_torch_decides(checks, form):
    assert checks[form]["same seed"]
    assert not checks[form]["other seed"]
    assert checks[form]["replays"]


@forms
def test_half_precision_is_rounded_once_and_empty_tensors_stay_empty(checks, form):
    assert checks[form]["half"] == ["torch.float16", "torch.bfloat16"]
    assert checks[form]["half error"] <= 2.0**-11
    assert checks[form]["empty"] == [0, 3]


@pytest.mark.parametrize(
    ("change", "serves"),
    [({}, True), ({"is_cuda": False}, False), ({"dtype": torch.float64}, False), ({"dtype": torch.bfloat16}, True)],
)
def test_the_kernel_takes_what_lies_on_a_gpu_in_single_or_half_precision(monkeypatch, change, serves):
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    tensor = SimpleNamespace(**({"is_cuda": True, "dtype": torch.float32} | change))
    assert noise_layers._kernel_serves(tensor) is serves


def test_a_graph_that_is_being_captured_and_a_compiler_get_the_plain_form(monkeypatch):
    tensor = SimpleNamespace(is_cuda=True, dtype=torch.float32)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    assert not noise_layers._kernel_serves(tensor)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert not noise_layers._kernel_serves(tensor)


@pytest.mark.parametrize("form", ["uniform", "bernoulli", "gaussian"])
def test_on_a_cpu_uout_keeps_no_more_than_dropout(form):
    def kept(layer: torch.nn.Module) -> int:
        sizes: list[int] = []
        x = torch.randn(1000, requires_grad=True)
        with torch.autograd.graph.saved_tensors_hooks(
            lambda t: sizes.append(t.numel() * t.element_size()) or t, lambda t: t
        ):
            layer.train()(x)
        return sum(sizes)

    assert 0 < kept(Uout(0.1, form)) <= kept(torch.nn.Dropout(0.5))
