from __future__ import annotations

import numpy as np
import pytest

from vsfix.graph_passes.errors import DataError, InputError
from vsfix.pipeline.data.fitting import ModelInput, Normalization, cast_array, fit_array
from vsfix.trainers.data.preprocessing import Preprocessing

FLOAT = np.dtype(np.float32)
BYTES = np.random.default_rng(0).integers(0, 256, (5, 7, 6, 3), dtype=np.uint8)  # (N, H, W, C)
MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
GIVEN, NOTHING = Normalization(MEAN, STD), Normalization()
TRUTH = ((BYTES / 255 - np.array(MEAN)) / np.array(STD)).transpose(0, 3, 1, 2)  # float64, (N, C, H, W)


def fit(array, shape=None, dtype=FLOAT, stated=None, given=NOTHING):
    """The array as a model takes it, and the notes."""
    notes = []
    return fit_array(array, ModelInput("x", dtype, shape), "d: array 'x'", stated, given, notes.append), notes


@pytest.mark.parametrize("dtype", ["float64", "float16", "int8", "int64", "uint16", "bool"])
def test_numbers_that_the_type_holds_are_the_same_numbers_and_that_is_noted(dtype):
    array = np.arange(12).reshape(4, 3).astype(dtype)
    found, notes = fit(array, (3,))
    assert found.dtype == FLOAT
    np.testing.assert_array_equal(found, array.astype(np.float64))
    assert notes == [f"d: array 'x' is {dtype}; cast to float32, which the model takes"]


def test_what_fits_already_is_not_copied_and_not_noted():
    array = np.ones((4, 3), np.float32)
    found, notes = fit(array, (3,))
    assert found is array
    assert notes == []


@pytest.mark.parametrize(
    ("array", "dtype", "words"),
    [
        (np.array([[1.0], [1e39]]), "float32", r"1e\+39 of sample 1 does not fit"),
        (np.array([[1.0], [70000.0]], np.float32), "float16", "70000.0 of sample 1"),
        (np.array([[1.0], [2.5]]), "int64", "2.5 of sample 1"),
        (np.array([[3.0], [2.0**63]]), "int64", "of sample 1"),
        (np.array([[3], [300]]), "int8", "300 of sample 1"),
        (np.array([[3], [-1]]), "uint8", "-1 of sample 1"),
        (np.array([[3], [-1]]), "uint64", "-1 of sample 1"),
        (np.array([[3], [2**64 - 1]], np.uint64), "int64", "of sample 1"),
        (np.array([[3.0], [2.5]], np.float16), "int64", "2.5 of sample 1"),
    ],
)
def test_a_value_that_does_not_fit_is_refused_by_its_sample(array, dtype, words):
    with pytest.raises(DataError, match=words):
        cast_array(array, np.dtype(dtype), "d")


def test_whole_numbers_in_floats_become_those_that_the_model_takes():
    found, _ = fit(np.array([[3.0, 4.0]]), (2,), np.dtype(np.int64))
    assert found.tolist() == [[3, 4]]


LAYOUTS = {
    "last to first": (BYTES, (3, 7, 6), TRUTH, "NHWC to NCHW"),
    "first to first": (BYTES.transpose(0, 3, 1, 2), (3, 7, 6), TRUTH, ""),
    "last to last": (BYTES, (7, 6, 3), TRUTH.transpose(0, 2, 3, 1), ""),
    "first to last": (BYTES.transpose(0, 3, 1, 2), (7, 6, 3), TRUTH.transpose(0, 2, 3, 1), "NCHW to NHWC"),
    "sides of any length": (BYTES, (3, 0, 0), TRUTH, "NHWC to NCHW"),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_images_of_bytes_are_normalised_in_the_layout_of_the_model(name):
    images, shape, expected, moved = LAYOUTS[name]
    found, notes = fit(images, shape, given=GIVEN)
    assert found.dtype == FLOAT
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)
    assert not np.allclose(found, expected[::-1], atol=1e-6), "a mistake would be seen"
    assert [moved in note for note in notes] == ([True] if moved else [])


def test_gray_images_without_an_axis_for_it_and_rows_of_bytes_are_normalised_too():
    gray = BYTES[..., 0]
    expected = (gray / 255 - 0.4) / 0.2
    one = Normalization((0.4,), (0.2,))
    np.testing.assert_allclose(fit(gray, (1, 7, 6), given=one)[0][:, 0], expected, rtol=0, atol=1e-6)
    np.testing.assert_allclose(fit(gray.reshape(5, -1), (42,), given=one)[0], expected.reshape(5, -1), atol=1e-6)


def test_the_model_itself_may_say_how():
    stated = Preprocessing(3, (7, 6), MEAN, STD)
    found, notes = fit(BYTES, (3, 7, 6), stated=stated)
    np.testing.assert_allclose(found, TRUTH, rtol=0, atol=1e-6)
    assert any("as the model says" in note for note in notes)


@pytest.mark.parametrize(
    ("array", "shape", "given", "words"),
    [
        (BYTES, (3, 7, 6), NOTHING, r"is uint8, the model takes float32: .*--mean 0.485.*x / 255 - mean"),
        (BYTES.astype(np.int64), (3, 7, 6), GIVEN, "give images as uint8"),
        (BYTES[:, :3, :3], (3, 3, 3), GIVEN, "give one number"),
        (np.zeros((2, 3, 5, 3), np.uint8), (3, 0, 0), GIVEN, "may have their channels first or last"),
        (BYTES, (3, 5, 6), GIVEN, "has samples of 7x6x3, the model takes 3x5x6"),
        (BYTES[..., :2], (2, 7, 6), GIVEN, "the images have 2 channels"),
        (BYTES.astype(np.float32), (3, 7, 6), NOTHING, r"takes 3x7x6; its channels come first: np.moveaxis"),
    ],
)
def test_images_that_leave_a_doubt_are_refused_with_what_to_do(array, shape, given, words):
    with pytest.raises(InputError, match=words):
        fit(array, shape, given=given)


def test_the_advice_for_images_of_bytes_and_for_their_layout_works():
    advised = ((BYTES / 255 - np.array(MEAN)) / np.array(STD)).astype("float32")
    np.testing.assert_allclose(fit(np.moveaxis(advised, -1, 1), (3, 7, 6))[0], TRUTH, rtol=0, atol=1e-6)


def test_what_is_no_image_of_bytes_is_taken_as_it_is_whatever_the_options_say():
    array = np.ones((4, 3), np.float32)
    found, notes = fit(array, (3,), given=GIVEN)
    assert found is array
    assert "taken as it is" in notes[0]


def test_one_number_a_sample_gets_the_axis_that_the_model_has():
    column = np.arange(4, dtype=np.float32)
    assert fit(column, (1,))[0].shape == (4, 1)
    assert fit(column[:, None], ())[0].shape == (4,)


@pytest.mark.parametrize(
    ("mean", "std", "size", "words"),
    [
        ((0.5,), None, None, "go together"),
        ((123.7,), (58.4,), None, "divide mean and deviation by 255"),
        ((0.5,), (0.0,), None, "must be above 0"),
        ((float("nan"),), (0.5,), None, "finite"),
        ((), (), None, "one finite number"),
        (None, None, (0, 5), "height and width"),
    ],
)
def test_numbers_that_are_no_normalisation_are_refused(mean, std, size, words):
    with pytest.raises(InputError, match=words):
        Normalization(mean, std, size)
