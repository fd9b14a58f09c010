from __future__ import annotations

import logging

import numpy as np
import onnx
import pytest

from vsfix.graph_passes.errors import DataError, InputError
from vsfix.graph_passes.io.model_file import read_model
from vsfix.pipeline.data.calibration import calibration_batches, labelled_samples, model_input_names, read_preprocessing
from vsfix.pipeline.data.loading import load_samples
from vsfix.pipeline.data.samples import Samples
from vsfix.trainers.data.datasets import load_dataset
from vsfix.trainers.data.preprocessing import METADATA_KEY, Preprocessing
from vsfix.trainers.training.checkpoint import load_checkpoint

DIGITS = Preprocessing(1, (8, 8), (0.3,), (0.37,))


def load(spec, **changes):
    options = {"split": "test", "preprocessing": DIGITS, "input_names": ["input"], "samples": None, "seed": 0}
    return load_samples(str(spec), **{**options, **changes})


def save(path, **arrays):
    np.savez(path, **arrays)
    return path


def test_a_named_data_set_goes_through_the_preprocessing_of_the_model():
    dataset = load_dataset("digits", "test")
    samples = load("digits")
    expected = ((dataset.images / 255 - 0.3) / 0.37).transpose(0, 3, 1, 2)
    assert samples.inputs["input"].dtype == np.float32
    np.testing.assert_allclose(samples.inputs["input"], expected, rtol=0, atol=1e-6)
    assert samples.labels is not None
    np.testing.assert_array_equal(samples.labels, dataset.labels)


def test_a_random_choice_is_part_of_the_whole_and_the_same_every_time():
    whole, first, again, other = load("digits"), *(load("digits", samples=20, seed=seed) for seed in (4, 4, 5))
    rows = [
        int(np.flatnonzero((whole.inputs["input"] == image).all(axis=(1, 2, 3)))[0]) for image in first.inputs["input"]
    ]
    assert len(set(rows)) == 20
    assert rows != sorted(rows)
    np.testing.assert_array_equal(first.labels, whole.labels[rows])
    np.testing.assert_array_equal(first.inputs["input"], again.inputs["input"])
    assert not np.array_equal(first.inputs["input"], other.inputs["input"])


def test_a_choice_from_a_file_keeps_inputs_and_labels_together(tmp_path):
    values = np.arange(30, dtype=np.float32)
    path = save(tmp_path / "d.npz", a=values[:, None], b=values[:, None] * 2, labels=np.arange(30))
    samples = load(path, input_names=["b", "a"], samples=7)
    assert list(samples.inputs) == ["b", "a"]
    np.testing.assert_array_equal(samples.inputs["a"][:, 0], samples.labels)
    np.testing.assert_array_equal(samples.inputs["b"], samples.inputs["a"] * 2)


def test_fewer_samples_than_asked_for_are_all_taken_and_the_log_says_so(npz_path, caplog):
    with caplog.at_level(logging.WARNING):
        samples = load(npz_path, samples=1000)
    assert len(samples) == 40
    assert "40 samples, fewer than the 1000" in caplog.text


def test_batches_put_together_are_the_samples(npz_path):
    samples = load(npz_path)
    batches = list(samples.batches(16))
    assert [len(batch["input"]) for batch in batches] == [16, 16, 8]
    np.testing.assert_array_equal(np.concatenate([batch["input"] for batch in batches]), samples.inputs["input"])


def test_labels_are_no_labels_where_the_model_has_an_input_of_that_name(tmp_path):
    path = save(tmp_path / "d.npz", labels=np.ones((3, 2), dtype=np.float32))
    assert load(path, input_names=["labels"]).labels is None


def test_the_preprocessing_of_an_exported_model_is_that_of_its_checkpoint(onnx_path, checkpoint_path):
    assert read_preprocessing(read_model(onnx_path)) == load_checkpoint(checkpoint_path).preprocessing


def test_a_model_without_metadata_says_nothing_and_one_with_nonsense_is_refused(residual):
    assert read_preprocessing(residual) is None
    onnx.helper.set_model_props(residual, {METADATA_KEY: "{"})
    with pytest.raises(InputError, match="not JSON"):
        read_preprocessing(residual)


def test_weights_that_are_listed_as_inputs_need_no_data(residual):
    weight = residual.graph.initializer[0]
    residual.graph.input.append(onnx.helper.make_tensor_value_info(weight.name, weight.data_type, weight.dims))
    assert model_input_names(residual) == ["x"]


def test_calibration_takes_the_training_part_and_evaluation_the_part_that_is_named(onnx_path):
    model = read_model(onnx_path)
    batches = calibration_batches(model, "digits", samples=None, batch_size=1000, seed=0)
    assert [len(batch["input"]) for batch in batches] == [1000, 297]
    assert len(labelled_samples(model, "digits", split="test", seed=0)) == 500


def test_accuracy_without_labels_is_refused(onnx_path, tmp_path):
    path = save(tmp_path / "d.npz", input=np.zeros((3, 1, 8, 8), dtype=np.float32))
    with pytest.raises(DataError, match="no array 'labels'"):
        labelled_samples(read_model(onnx_path), str(path), split="test", seed=0)


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"x": np.zeros((2, 3))}, "no array 'input', which the model needs; it holds x"),
        ({"input": np.zeros((0, 3))}, "holds no sample"),
        ({"input": np.float32(1)}, "holds no sample"),
        ({"input": np.array(["a", "b"])}, "numbers are needed"),
        ({"input": np.array([[1.0], [2.0], [np.nan], [np.inf]])}, r"array 'input' is not finite in 2 of 4.*sample 2"),
        ({"input": np.zeros((3, 2)), "labels": np.zeros(2, dtype=int)}, "input has 3, labels has 2"),
        ({"input": np.zeros((3, 2)), "labels": np.array(list("abc"))}, "labels are <U1"),
        ({"input": np.zeros((3, 2)), "labels": np.zeros((3, 1), dtype=complex)}, r"labels are complex128 of shape"),
    ],
)
def test_a_file_that_does_not_serve_is_refused(tmp_path, arrays, words):
    with pytest.raises(DataError, match=words):
        load(save(tmp_path / "d.npz", **arrays))


def test_inputs_of_different_lengths_are_refused():
    with pytest.raises(DataError, match="a has 3, b has 4"):
        Samples("d", {"a": np.zeros((3, 1)), "b": np.zeros((4, 1))})


def test_no_input_is_refused():
    with pytest.raises(DataError, match="holds no input"):
        Samples("d", {})


def test_a_named_data_set_for_a_model_that_says_nothing_is_refused():
    with pytest.raises(InputError, match=r"give an \.npz file"):
        load("digits", preprocessing=None)


def test_a_named_data_set_for_a_model_of_two_inputs_is_refused():
    with pytest.raises(InputError, match="the inputs a, b"):
        load("digits", input_names=["a", "b"])


def test_unknown_data_is_refused():
    with pytest.raises(InputError, match="unknown"):
        load("mnist")


@pytest.mark.parametrize("samples", [None, 300, 32])
def test_a_set_ordered_by_class_is_not_taken_in_that_order(samples, parse, tmp_path):
    """Heads, halves and groups are taken of a calibration set, and each must be like the whole."""
    classes = np.repeat(np.arange(10, dtype=np.float32), 40)
    path = save(tmp_path / "d.npz", x=np.tile(classes[:, None], (1, 3)))
    model = parse("(float[N, 3] x) => (float[N, 3] y) { y = Relu (x) }", {})
    batches = calibration_batches(model, str(path), samples=samples, batch_size=16, seed=0)
    order = np.concatenate([batch["x"][:, 0] for batch in batches])
    assert len(order) == (samples or 400)
    assert len(np.unique(order[:32])) >= 8
    if samples != 32:
        halves = np.array_split(order, 2)
        assert abs(halves[0].mean() - halves[1].mean()) < 1
    if samples is None:
        np.testing.assert_array_equal(np.sort(order), classes)
