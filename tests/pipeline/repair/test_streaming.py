"""A set that is far larger than the memory that a command may take is decoded run by run."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from PIL import Image

from vsfix.graph_passes.io.model_file import import_graph
from vsfix.graph_passes.measurement.measurement import MeasurementConfig, measure
from vsfix.graph_passes.noise_average.samples import SampleSet
from vsfix.graph_passes.statistics.batches import LazyBatch, count_samples, join_batches, samples_in, take_rows
from vsfix.pipeline.data.calibration import calibration_batches, labelled_samples
from vsfix.trainers.data.preprocessing import METADATA_KEY, Preprocessing

SIDE, FILES = 64, 3000
DECODED = FILES * 3 * SIDE * SIDE * 4  # bytes, 140 MiB
CALL = """
import re, sys
from pathlib import Path
from vsfix.pipeline.cli.main import vsfix
try:
    vsfix(sys.argv[1:], prog_name="vsfix")
finally:
    print("peak", re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Images of two classes, ordered by them, as a folder is; forty files under many names."""
    root = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for number in range(40):
        Image.fromarray(rng.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)).save(root / f"{number}.png")
    for part in ("train", "val"):
        for row in range(FILES):
            name = root / part / ("a" if row < FILES // 2 else "b") / f"{row:05}.png"
            name.parent.mkdir(parents=True, exist_ok=True)
            name.symlink_to(root / f"{row % 40}.png")
    return root


@pytest.fixture
def network(parse, tmp_path) -> Path:
    rng = np.random.default_rng(1)
    weights = {"w": rng.normal(0, 0.2, (4, 3, 3, 3)), "head": rng.normal(0, 1, (4, 2)), "ratio": np.array(0.5)}
    weights |= {name: np.full(4, value) for name, value in (("g", 1), ("b", 0.1), ("m", 0), ("v", 2))}
    model = parse(
        f"(float[N, 3, {SIDE}, {SIDE}] x) => (float[N, 2] y) {{ c = Conv (x, w) d = Dropout (c, ratio) "
        "n = BatchNormalization (d, g, b, m, v) r = Relu (n) p = GlobalAveragePool (r) f = Flatten (p) "
        "y = MatMul (f, head) }",
        {name: value.astype(np.float32) for name, value in weights.items()},
    )
    preprocessing = Preprocessing(3, (SIDE, SIDE), (0.5,) * 3, (0.3,) * 3)
    onnx.helper.set_model_props(model, {METADATA_KEY: preprocessing.to_json()})
    onnx.save(model, tmp_path / "net.onnx")
    return tmp_path / "net.onnx"


def peak(*arguments: object) -> int:
    """The largest number of bytes that a command held."""
    command = [sys.executable, "-c", CALL, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    found = re.search(r"^peak (\d+)$", done.stdout, re.MULTILINE)
    assert found, done.stderr
    return int(found[1]) * 1024


@pytest.mark.long
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="only Linux says what a process held")
def test_exact_and_labelled_data_hold_no_decoded_set(folder, network, tmp_path):
    call = ("optimize", network, "-o", tmp_path / "o.onnx", "--force", "--method", "exact", "--max-memory", "64M")
    data = ("--data", f"imagefolder:{folder}")
    few = peak(*call, *data, "--samples", 512)  # enough for runs as large as those of the whole
    whole = peak(*call, *data, "--eval-data", f"imagefolder:{folder}", "--max-loss", 100)
    assert whole - few < DECODED / 4


@pytest.mark.long
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="only Linux says what a process held")
def test_runs_with_the_noise_on_are_as_small_as_the_others(folder, network, tmp_path):
    """One batch of 1,000 under eight draws would hold 700 MiB of activations."""
    call = ("optimize", network, "-o", tmp_path / "o.onnx", "--force", "--method", "paired", "--max-memory", "64M")
    data = ("--data", f"imagefolder:{folder}", "--batch-size", 1000)
    few, many = (peak(*call, *data, "--samples", samples) for samples in (64, 1000))
    assert many - few < DECODED / 2


def test_what_is_decoded_run_by_run_gives_the_same_bits(folder, network, open_model):
    model, spec = onnx.load(network), f"imagefolder:{folder}"
    held, lazy = (
        calibration_batches(model, spec, samples=100, batch_size=30, seed=3, max_memory=memory) for memory in (2**40, 0)
    )
    first, second = (
        measure(import_graph(model), batches, open_model, MeasurementConfig(["n"])) for batches in (held, lazy)
    )
    assert first["n"].variance.tobytes() == second["n"].variance.tobytes()
    assert SampleSet.of(held).keys == SampleSet.of(lazy).keys
    whole = labelled_samples(model, spec, split="test", seed=0)
    part = labelled_samples(model, spec, split="test", seed=0, samples=20, max_memory=0)
    assert whole.labels is not None
    np.testing.assert_array_equal(whole.labels, np.repeat([0, 1], FILES // 2))
    assert len(part) == len(part.inputs["x"]) == 20


def test_parts_of_a_lazy_set_are_counted_chosen_and_joined_unread():
    asked = []

    def read(name, rows):
        asked.append(name)
        return np.asarray(rows) * (10 if name == "b" else 1)

    whole = LazyBatch(read, ["a", "b"], np.arange(10))
    parts = [take_rows(whole, slice(0, 4)), take_rows(whole, np.array([9, 7]))]
    joined = join_batches(parts)
    assert (samples_in(joined), count_samples(parts), asked) == (6, 6, [])
    np.testing.assert_array_equal(joined["b"], [0, 10, 20, 30, 90, 70])
    assert dict(parts[1])["a"].tolist() == [9, 7]
    with pytest.raises(KeyError):
        whole["c"]
    mixed = join_batches([parts[0], {"a": np.array([5]), "b": np.array([6])}])
    assert mixed["a"].tolist() == [0, 1, 2, 3, 5]
