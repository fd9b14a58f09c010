from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vsfix.graph_passes.errors import DataError, InputError
from vsfix.trainers.data.preprocessing import METADATA_KEY, Preprocessing

COLOUR = Preprocessing(3, (4, 5), (0.1, 0.5, 0.9), (0.2, 0.25, 1.5), ("cat", 'größer, "quoted"'))


def colour_images() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (7, 4, 5, 3), dtype=np.uint8)


def by_formula(images: np.ndarray, preprocessing: Preprocessing) -> np.ndarray:
    return ((images / 255.0 - preprocessing.mean) / preprocessing.std).transpose(0, 3, 1, 2)


def test_apply_is_the_formula_rounded_once_from_float64():
    outputs = COLOUR.apply(colour_images())
    assert outputs.dtype == np.float32
    assert outputs.flags.c_contiguous
    np.testing.assert_array_equal(outputs, by_formula(colour_images(), COLOUR).astype(np.float32))


def test_a_swapped_channel_would_be_noticed():
    swapped = by_formula(colour_images()[..., ::-1], COLOUR).astype(np.float32)
    assert np.abs(COLOUR.apply(colour_images()) - swapped).max() > 0.1


def test_more_images_than_one_part_holds_are_all_standardized():
    images = np.random.default_rng(1).integers(0, 256, (9000, 1, 2, 1), dtype=np.uint8)
    grey = Preprocessing(1, (1, 2), (0.5,), (0.5,))
    np.testing.assert_array_equal(grey.apply(images), by_formula(images, grey).astype(np.float32))


def test_no_images_give_no_inputs():
    assert COLOUR.apply(np.zeros((0, 4, 5, 3), np.uint8)).shape == (0, 3, 4, 5)


@pytest.mark.parametrize(
    ("shape", "message"), [((2, 4, 5, 1), "1 channels, but the model takes 3"), ((2, 5, 4, 3), "not resized")]
)
def test_images_of_another_form_are_refused(shape, message):
    with pytest.raises(InputError, match=message):
        COLOUR.apply(np.zeros(shape, np.uint8))


@pytest.mark.parametrize("images", [np.zeros((2, 4, 5, 3), np.float32), np.zeros((4, 5, 3), np.uint8)])
def test_arrays_that_are_no_byte_images_are_refused(images):
    with pytest.raises(DataError, match="uint8"):
        COLOUR.apply(images)


@given(
    mean=st.floats(-1e6, 1e6),
    std=st.floats(1e-9, 1e6),
    names=st.lists(st.text(), max_size=3),
    size=st.tuples(st.integers(1, 999), st.integers(1, 999)),
)
def test_json_gives_back_an_equal_object(mean, std, names, size):
    preprocessing = Preprocessing(1, size, (mean,), (std,), tuple(names))
    assert Preprocessing.from_json(preprocessing.to_json()) == preprocessing


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "1", "[" * 100_000, "\ud800"])
def test_text_that_is_no_json_object_is_refused(text):
    with pytest.raises(InputError, match="preprocessing"):
        Preprocessing.from_json(text)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("version", 2),
        ("layout", "NHWC"),
        ("scale", 1),
        ("channels", "3"),
        ("channels", True),
        ("channels", 2),
        ("channels", 0),
        ("size", [4]),
        ("size", [4, 5, 6]),
        ("size", [4, 0]),
        ("size", [4.5, 5]),
        ("size", 4),
        ("mean", [0.1, 0.5]),
        ("mean", [0.1, 0.5, None]),
        ("mean", [0.1, 0.5, float("nan")]),
        ("mean", [0.1, 0.5, 10**400]),
        ("std", [0.1, 0.5, 0]),
        ("std", [0.1, 0.5, -1]),
        ("std", [0.1, 0.5, float("inf")]),
        ("class_names", "ab"),
        ("class_names", [1]),
        ("class_names", None),
    ],
)
def test_a_malformed_field_is_refused(field, value):
    text = json.dumps(json.loads(COLOUR.to_json()) | {field: value})
    with pytest.raises(InputError, match="preprocessing"):
        Preprocessing.from_json(text)


@pytest.mark.parametrize("field", json.loads(COLOUR.to_json()))
def test_a_missing_field_is_refused(field):
    fields = json.loads(COLOUR.to_json())
    del fields[field]
    with pytest.raises(InputError, match="preprocessing"):
        Preprocessing.from_json(json.dumps(fields))


def test_the_metadata_key_is_what_exported_files_hold():
    assert METADATA_KEY == "vsfix.preprocessing"


def test_preprocessing_and_datasets_need_no_torch():
    code = (
        "import sys, vsfix.trainers.data.preprocessing, vsfix.trainers.data.datasets; sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_images_of_a_size_that_no_memory_holds_and_names_that_are_no_unicode_are_refused():
    text = Preprocessing(1, (8, 8), (0.0,), (1.0,), ("a",)).to_json()
    with pytest.raises(InputError, match="67,108,864 pixels are the most"):
        Preprocessing.from_json(text.replace("[8, 8]", "[200000, 200000]"))
    with pytest.raises(InputError, match="'class_names' must be names, in Unicode"):
        Preprocessing.from_json(text.replace('"a"', r'"\ud800"'))


def test_a_deviation_of_almost_nothing_makes_infinite_images_and_no_warning():
    images = np.full((1, 8, 8, 1), 255, dtype=np.uint8)
    assert np.isinf(Preprocessing(1, (8, 8), (0.0,), (1e-320,)).apply(images)).all()
