from __future__ import annotations

import gzip
import struct
import sys

import numpy as np
import pytest

from vsfix.graph_passes.errors import DataError, InputError, MissingComponentError
from vsfix.trainers.data.datasets import FASHION_MNIST_FOLDER, Dataset, load_dataset, standardization


def write_idx(path, values: np.ndarray) -> None:
    content = bytes([0, 0, 8, values.ndim]) + struct.pack(f">{values.ndim}I", *values.shape) + values.tobytes()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


@pytest.fixture
def fashion(tmp_path):
    """A folder with twelve training images, gzipped, and eight test images, plain."""
    rng = np.random.default_rng(0)
    for prefix, count, suffix in (("train", 12, ".gz"), ("t10k", 8, "")):
        images = rng.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        write_idx(tmp_path / f"{prefix}-images-idx3-ubyte{suffix}", images)
        write_idx(tmp_path / f"{prefix}-labels-idx1-ubyte{suffix}", np.arange(count, dtype=np.uint8) % 10)
    return tmp_path


def test_the_digits_are_split_once_and_for_all():
    train, test = load_dataset("digits", "train"), load_dataset("digits", "test")
    assert train.images.shape == (1297, 8, 8, 1)
    assert test.images.shape == (500, 8, 8, 1)
    # The first rows and a sum: another split would silently change every published number.
    assert test.labels[:8].tolist() == [1, 8, 0, 5, 1, 6, 9, 0]
    assert int((test.images.astype(np.int64).sum((1, 2, 3)) * np.arange(500)).sum()) == 620144064


def test_the_two_parts_of_the_digits_are_the_whole_and_share_no_image():
    from sklearn.datasets import load_digits

    whole = np.rint(load_digits().images * 255 / 16).astype(np.uint8)
    parts = np.concatenate([load_dataset("digits", split).images[..., 0] for split in ("train", "test")])
    assert whole.max() == 255
    assert sorted(image.tobytes() for image in parts) == sorted(image.tobytes() for image in whole)


def test_every_digit_has_its_share_of_the_test_images():
    train, test = (np.bincount(load_dataset("digits", split).labels) for split in ("train", "test"))
    assert np.abs(test - (train + test) * 500 / 1797).max() <= 1


def test_fashion_mnist_is_read_from_a_folder(fashion):
    train, test = load_dataset(f"fashion-mnist:{fashion}", "train"), load_dataset(f"fashion-mnist:{fashion}", "test")
    assert train.images.shape == (12, 28, 28, 1)
    assert test.labels.tolist() == [0, 1, 2, 3, 4, 5, 6, 7]
    assert test.labels.dtype == np.int64
    assert train.class_names[9] == "Ankle boot"


def test_missing_files_are_named_with_the_package_that_has_them(fashion):
    (fashion / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(InputError, match=r"no t10k-labels-idx1-ubyte\[\.gz\];.*dataset-fashion-mnist"):
        load_dataset(f"fashion-mnist:{fashion}", "test")


def test_a_label_file_of_another_length_is_refused(fashion):
    write_idx(fashion / "t10k-labels-idx1-ubyte", np.zeros(7, np.uint8))
    with pytest.raises(DataError, match="8 images, but labels"):
        load_dataset(f"fashion-mnist:{fashion}", "test")


def test_a_label_without_a_class_is_refused(fashion):
    write_idx(fashion / "t10k-labels-idx1-ubyte", np.full(8, 10, np.uint8))
    with pytest.raises(DataError, match="there are 10 classes"):
        load_dataset(f"fashion-mnist:{fashion}", "test")


def test_an_empty_file_is_refused(fashion):
    write_idx(fashion / "t10k-images-idx3-ubyte", np.zeros((0, 28, 28), np.uint8))
    write_idx(fashion / "t10k-labels-idx1-ubyte", np.zeros(0, np.uint8))
    with pytest.raises(DataError, match="names no values"):
        load_dataset(f"fashion-mnist:{fashion}", "test")


@pytest.mark.parametrize("spec", ["", "mnist", "digits:", "digits:/tmp", "fashion-mnist2"])
def test_an_unknown_name_is_answered_with_the_known_ones(spec):
    with pytest.raises(InputError, match="known are digits, fashion-mnist"):
        load_dataset(spec, "train")


def test_an_empty_folder_name_and_an_unknown_part_are_refused():
    with pytest.raises(InputError, match="behind the colon"):
        load_dataset("fashion-mnist:", "train")
    with pytest.raises(InputError, match="train or test"):
        load_dataset("digits", "validation")


def test_without_scikit_learn_the_digits_name_the_line_that_installs_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(MissingComponentError, match="pip install"):
        load_dataset("digits", "train")


def test_standardization_is_that_of_numpy_in_float64():
    images = np.random.default_rng(3).integers(0, 200, (5000, 2, 3, 3), dtype=np.uint8)
    dataset = Dataset("random", images, np.zeros(5000, np.int64), ("one",))
    mean, std = standardization(dataset)
    np.testing.assert_allclose(mean, (images / 255.0).mean((0, 1, 2)), rtol=1e-12)
    np.testing.assert_allclose(std, (images / 255.0).std((0, 1, 2)), rtol=1e-12)
    # Teeth: the unbiased deviation, a likely mistake, is further away than the tolerance.
    assert abs(std[0] / (images[..., 0] / 255.0).std(ddof=1) - 1) > 1e-9


def test_a_channel_of_one_colour_can_be_divided_by_its_deviation():
    dataset = Dataset("grey", np.full((3, 2, 2, 1), 128, np.uint8), np.zeros(3, np.int64), ("one",))
    assert standardization(dataset) == ((128 / 255,), (1 / 255,))


@pytest.mark.skipif(
    not FASHION_MNIST_FOLDER.is_dir(), reason=f"{FASHION_MNIST_FOLDER} is missing: apt install dataset-fashion-mnist"
)
def test_the_published_fashion_mnist_is_read_whole():
    train, test = load_dataset("fashion-mnist", "train"), load_dataset("fashion-mnist", "test")
    assert train.images.shape == (60000, 28, 28, 1)
    assert np.bincount(train.labels).tolist() == [6000] * 10
    assert np.bincount(test.labels).tolist() == [1000] * 10
    mean, std = standardization(train)
    np.testing.assert_allclose((mean[0], std[0]), (0.2860, 0.3530), atol=5e-5)
