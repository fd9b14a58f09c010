from __future__ import annotations

import numpy as np
import pytest

from vsfix.graph_passes.errors import DataError
from vsfix.trainers.datasets import load_dataset

IMAGES = np.random.default_rng(0).integers(0, 256, (6, 9, 8), dtype=np.uint8)
LABELS = np.array([0, 2, 1, 2, 0, 1])
KERAS = {"x_train": IMAGES[:4], "y_train": LABELS[:4], "x_test": IMAGES[4:], "y_test": LABELS[4:]}


def write(tmp_path, arrays) -> str:
    np.savez(tmp_path / "d.npz", **arrays)
    return str(tmp_path / "d.npz")


def test_both_forms_hold_the_same_images(tmp_path):
    medmnist = {
        **{f"{part}_images": KERAS[f"x_{part}"][..., None] for part in ("train", "test")},
        **{f"{part}_labels": KERAS[f"y_{part}"][:, None].astype(np.uint8) for part in ("train", "test")},
        "val_images": IMAGES[:1],
    }
    for arrays in (KERAS, medmnist):
        spec = write(tmp_path, arrays)
        for split, rows in (("train", slice(4)), ("test", slice(4, 6))):
            found = load_dataset(spec, split)
            np.testing.assert_array_equal(found.images[:], IMAGES[rows][..., None])
            np.testing.assert_array_equal(found.labels, LABELS[rows])
            assert found.class_names == ("0", "1", "2")


def test_classes_may_have_names(tmp_path):
    spec = write(tmp_path, KERAS | {"class_names": np.array(["ant", "bee", "cat", "dog"])})
    assert load_dataset(spec, "test").class_names == ("ant", "bee", "cat", "dog")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"y_test": None}, r"holds .*; to train on it needs x_test and y_test or test_images and test_labels"),
        ({"x_test": IMAGES[4:].astype(np.float32)}, "images are float32"),
        ({"y_test": LABELS[4:].astype(float)}, "labels are float64; whole numbers are needed"),
        ({"y_test": LABELS[4:5]}, "one per image"),
        ({"y_test": np.array([-1, 0])}, "labels run from -1"),
        ({"class_names": np.array(["ant"])}, "there are 1 classes"),
        ({"class_names": np.array([1, 2])}, "class_names is"),
    ],
)
def test_what_is_no_labelled_set_is_refused(tmp_path, change, message):
    arrays = {name: array for name, array in (KERAS | change).items() if array is not None}
    with pytest.raises(DataError, match=message):
        load_dataset(write(tmp_path, arrays), "test")
