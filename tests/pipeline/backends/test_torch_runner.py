from __future__ import annotations

import importlib

import numpy as np
import pytest
import torch
from torch import nn

from vsfix.graph_passes.errors import DataError, InputError, MissingComponentError, ModelError
from vsfix.graph_passes.ir.runtime import Runner
from vsfix.pipeline.backends.feeds import InputSpec
from vsfix.pipeline.backends.torch_runner import TorchRunner, full_float32, with_statistics


def network() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(4, 3), nn.Dropout(0.5), nn.BatchNorm1d(3), nn.ReLU(inplace=True))


X = np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32)
STATISTICS = {"2.running_mean": np.array([1, 2, 3], np.float32), "2.running_var": np.array([4, 5, 6], np.float32)}


def test_it_runs_a_module_in_eval_mode():
    module = network().train()
    runner: Runner = TorchRunner(module)
    outputs = [runner.run({"input": X})["logits"] for _ in range(2)]
    linear = X @ module[0].weight.detach().numpy().T + module[0].bias.detach().numpy()
    np.testing.assert_allclose(outputs[0], np.maximum(linear / np.sqrt(1 + 1e-5), 0), rtol=0, atol=1e-6)
    np.testing.assert_array_equal(outputs[0], outputs[1])


def test_a_module_that_works_in_place_leaves_the_input_alone():
    x = X.copy()
    x.flags.writeable = False
    TorchRunner(nn.ReLU(inplace=True)).run({"input": x})
    np.testing.assert_array_equal(x, X)


def test_the_names_can_be_chosen():
    runner = TorchRunner(network(), input_name="x", output_name="y")
    assert list(runner.run({"x": X})) == ["y"]


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        ({"x": X}, "input 'x'"),
        ({"input": X.astype(np.float64)}, "float64"),
        ({"input": X[:, :3]}, r"refuses float32 \(6, 3\)"),
    ],
)
def test_what_the_module_does_not_take_is_refused_in_one_line(inputs, words):
    with pytest.raises(DataError, match=words) as caught:
        TorchRunner(network()).run(inputs)
    assert "\n" not in str(caught.value)


class Several(nn.Module):
    def forward(self, left, right, *, offset=None):
        return {"sum": left + right + (0 if offset is None else offset), "signs": [(left > 0), left.argmax(1)]}


def test_several_inputs_are_given_by_name_or_in_order_and_outputs_have_names_and_types():
    right, offset = 2 * X, 3 * X
    for names in (("left", "right", "offset"), ("right", "offset", "left"), ("a", "b")):
        arrays = dict(zip(names, (X, right, offset), strict=False))
        runner = TorchRunner(Several(), inputs=[InputSpec(name, None, None) for name in names])
        found = runner.run(arrays)
        left = arrays.get("left", X)
        np.testing.assert_allclose(found["sum"], sum(arrays.values()), rtol=1e-6, atol=0)
        np.testing.assert_array_equal(found["signs.0"], left > 0)
        np.testing.assert_array_equal(found["signs.1"], left.argmax(1))
    with pytest.raises(InputError, match=r"3 inputs \(a, b, c\) do not fit"):
        TorchRunner(Several(), inputs=[InputSpec(name, None, None) for name in "abc"])
    with pytest.raises(DataError, match=r"inputs 'left', 'right': the torch module refuses float32 \(6, 4\), float32"):
        TorchRunner(Several(), inputs=[InputSpec(name, None, None) for name in ("left", "right")]).run(
            {"left": X, "right": X[:, :3]}
        )


def test_a_module_that_returns_no_tensor_is_refused():
    class Nothing(nn.Module):
        def forward(self, x):
            return (None, 3)

    with pytest.raises(ModelError, match="Nothing returns a tuple without a tensor"):
        TorchRunner(Nothing()).run({"input": X})


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_a_gpu_that_is_not_there_is_missing():
    with pytest.raises(MissingComponentError, match="sees no GPU"):
        TorchRunner(network(), device="cuda")


def test_statistics_are_loaded_into_a_copy():
    module = network()
    before = {key: tensor.clone() for key, tensor in module.state_dict().items()}
    changed = with_statistics(module, STATISTICS).state_dict()
    for key, tensor in module.state_dict().items():
        assert torch.equal(tensor, before[key])
        assert np.array_equal(changed[key], STATISTICS.get(key, before[key]))


@pytest.mark.parametrize(
    ("statistics", "words"),
    [
        ({}, "there are none"),
        ({"3.running_mean": np.zeros(3)}, "'3.running_mean' is no running statistic"),
        ({"2.num_batches_tracked": np.zeros(())}, "'2.num_batches_tracked' is no running statistic"),
        ({"2.running_mean": np.zeros(4)}, r"has the shape \(4,\), but the module's has \(3,\)"),
        ({"2.running_mean": np.array([0, np.nan, 0])}, "finite"),
        ({"2.running_var": np.array([0, -1.0, 0])}, "none below 0"),
        ({"2.running_mean": np.array(["a", "b", "c"])}, "finite"),
    ],
)
def test_statistics_that_do_not_belong_to_the_module_are_refused(statistics, words):
    with pytest.raises(InputError, match=words):
        with_statistics(network(), statistics)


def test_tf32_is_off_on_a_gpu_and_as_before_afterwards():
    settings = (torch.backends.cuda.matmul, torch.backends.cudnn.conv)
    before = [setting.fp32_precision for setting in settings]
    with full_float32(torch.device("cuda")):
        assert [setting.fp32_precision for setting in settings] == ["ieee", "ieee"]
    assert [setting.fp32_precision for setting in settings] == before


@pytest.fixture
def compiler():
    """torch.compile with nothing compiled before, and none of it left behind."""
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@pytest.mark.long
def test_compiled_it_computes_what_torch_itself_does_with_every_batch_size(compiler):
    module = network()
    with TorchRunner(module, compiled=True) as compiled, TorchRunner(module) as eager:
        assert (compiled.name, compiled.concurrency) == ("torch-compile (cpu)", 1)
        for seed, size in enumerate((6, 6, 4)):
            x = np.random.default_rng(seed).normal(0, 3, (size, 4)).astype(np.float32)
            x.flags.writeable = False
            expected = eager.run({"input": x})["logits"]
            np.testing.assert_allclose(compiled.run({"input": x})["logits"], expected, rtol=0, atol=2e-6)
            assert np.abs(expected).max() > 0.1


def test_compiled_it_is_another_program_and_not_the_module_itself(compiler):
    calls = []

    class Counting(nn.Module):
        def forward(self, x):
            if not torch.compiler.is_compiling():
                calls.append(x.shape)
            return x * 2

    runner = TorchRunner(Counting(), compiled=True)
    outputs = [runner.run({"input": X})["logits"] for _ in range(3)]
    assert calls == [X.shape]  # the look whether torch itself takes the shape, once
    np.testing.assert_array_equal(outputs[2], X * 2)


def test_what_the_module_does_not_take_is_no_fault_of_the_compiler(compiler, capfd):
    with pytest.raises(DataError, match=r"the torch module refuses float32 \(6, 3\)"):
        TorchRunner(network(), compiled=True).run({"input": X[:, :3]})
    assert capfd.readouterr() == ("", "")


def test_what_can_not_be_compiled_whole_is_an_error_in_one_line(compiler):
    class Branching(nn.Module):
        def forward(self, x):
            return x if x.sum() > 0 else -x

    words = "torch.compile fails: Unsupported: Data-dependent branching; run it with --backend torch"
    with pytest.raises(ModelError, match=words) as caught:
        TorchRunner(Branching(), compiled=True).run({"input": X})
    assert "\n" not in str(caught.value)


def test_without_a_compiler_the_package_that_holds_one_is_named(compiler, monkeypatch, tmp_path):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))  # nothing compiled earlier serves
    without = importlib.import_module("torch._inductor.config").patch({"cpp.cxx": ("/nonexistent/g++",)})
    with (
        without,
        pytest.raises(MissingComponentError, match=r"No working C\+\+ compiler .*apt-get install g\+\+") as caught,
    ):
        TorchRunner(network(), compiled=True).run({"input": X})
    assert "\n" not in str(caught.value)


def test_a_closed_runner_does_not_count_against_the_limit_of_compiled_programs(compiler):
    # torch's own way: pytest's would leave the setting deleted.
    with importlib.import_module("torch._dynamo.config").patch("recompile_limit", 1):
        for scale in (1, 2, 3):
            with torch.random.fork_rng(), TorchRunner(nn.Linear(4, scale), compiled=True) as runner:
                assert runner.run({"input": X})["logits"].shape == (6, scale)
