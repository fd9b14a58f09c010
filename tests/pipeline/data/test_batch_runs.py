from __future__ import annotations

import logging
import subprocess
import sys

import numpy as np
import pytest

from vsfix.graph_passes.errors import BuildError, DataError, OutOfMemoryError
from vsfix.pipeline.data.batch_runs import run_batches
from vsfix.pipeline.data.samples import Samples

# A convolution whose output takes 1 MiB a sample, in a process that may take 300 MiB more than it has.
SHORT_OF_MEMORY = """
import logging, resource, sys
import numpy as np, onnx.helper, onnx.numpy_helper, torch
from vsfix.pipeline.comparison.accuracy import accuracy_of
from vsfix.pipeline.backends.onnxruntime_runner import OnnxRuntimeRunner
from vsfix.pipeline.backends.torch_runner import TorchRunner
from vsfix.pipeline.data.samples import Samples

logging.basicConfig(format="%(message)s")
torch.set_num_threads(1)
module = torch.nn.Sequential(torch.nn.Conv2d(1, 64, 1), torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())
if sys.argv[1] == "torch":
    runner = TorchRunner(module, input_name="input")
else:
    w, b = (p.detach().numpy() for p in module[0].parameters())
    nodes = [
        onnx.helper.make_node("Conv", ["input", "w", "b"], ["c"], kernel_shape=[1, 1]),
        onnx.helper.make_node("Relu", ["c"], ["r"]),
        onnx.helper.make_node("GlobalAveragePool", ["r"], ["g"]),
        onnx.helper.make_node("Flatten", ["g"], ["y"]),
    ]
    tensors = [onnx.numpy_helper.from_array(w, "w"), onnx.numpy_helper.from_array(b, "b")]
    value = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(nodes, "g", [value("input", 1, ["N", 1, 64, 64])], [value("y", 1, ["N", 64])], tensors)
    runner = OnnxRuntimeRunner(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8))
images = np.random.default_rng(0).normal(size=(1024, 1, 64, 64)).astype(np.float32)
samples = Samples("images", {"input": images}, np.zeros(1024, np.int64))
expected = accuracy_of("m", runner, samples, batch_size=8).score
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 300 * 2**20, resource.RLIM_INFINITY))
assert accuracy_of("m", runner, samples, batch_size=1024).score == expected
"""


class Memory:
    """A runtime whose device holds so many samples, and whose model may be made for one batch size."""

    name = "device"
    concurrency = 1

    def __init__(self, room, fixed=None, refusal=DataError):
        self.room, self.fixed, self.refusal, self.runs = room, fixed, refusal, []

    def run(self, inputs):
        (array,) = inputs.values()
        self.runs.append(len(array))
        if self.fixed not in (None, len(array)):
            raise self.refusal("another batch size")
        if len(array) > self.room:
            raise OutOfMemoryError(f"no memory for a batch of {len(array)}")
        return {"y": 2 * array}


def make_samples(count):
    return Samples("images", {"x": np.arange(count, dtype=np.float32)})


def test_a_batch_that_does_not_fit_is_halved_and_every_sample_is_run_once_in_its_order(caplog):
    memory = Memory(room=5)
    with caplog.at_level(logging.WARNING):
        runs = list(run_batches(memory, make_samples(21), 16))
    assert np.concatenate([outputs["y"] for _, outputs in runs]).tolist() == (2 * np.arange(21)).tolist()
    assert [list(range(21))[rows] for rows, _ in runs] == [list(range(n, min(n + 4, 21))) for n in range(0, 21, 4)]
    assert memory.runs == [16, 8, 4, 4, 4, 4, 4, 1]
    assert caplog.messages == [
        "device: no memory for 16 samples at once; going on with 8",
        "device: no memory for 8 samples at once; going on with 4",
    ]


def test_what_fits_runs_in_the_batches_asked_for(caplog):
    memory = Memory(room=8)
    assert [rows for rows, _ in run_batches(memory, make_samples(10), 8)] == [slice(0, 8), slice(8, 10)]
    assert caplog.messages == []


def test_a_sample_that_does_not_fit_alone_ends_the_runs():
    with pytest.raises(OutOfMemoryError, match=r"a batch of 1$"):
        list(run_batches(Memory(room=0), make_samples(3), 2))


@pytest.mark.parametrize("refusal", [DataError, BuildError])
def test_a_model_of_one_batch_size_says_that_the_memory_does_not_suffice(refusal):
    with pytest.raises(OutOfMemoryError, match="a batch of 8"):
        list(run_batches(Memory(room=4, fixed=8, refusal=refusal), make_samples(16), 8))
    with pytest.raises(refusal, match="another batch size"):
        list(run_batches(Memory(room=8, fixed=8, refusal=refusal), make_samples(10), 8))


@pytest.mark.long
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the limit of the address space is Linux's")
@pytest.mark.parametrize("runtime", ["torch", "onnxruntime"])
def test_the_runtimes_say_that_memory_is_short_and_the_accuracy_is_that_of_small_batches(runtime):
    done = subprocess.run([sys.executable, "-c", SHORT_OF_MEMORY, runtime], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "no memory for 1024 samples at once; going on with 512" in done.stderr
