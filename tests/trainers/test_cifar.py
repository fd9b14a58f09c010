from __future__ import annotations

import os
import pickle

import numpy as np
import pytest

from vsfix.graph_passes.errors import DataError, InputError
from vsfix.trainers.datasets import load_dataset

COUNT = 3  # images of a file
NAMES = {"cifar10": [f"class {i}" for i in range(10)], "cifar100": [f"class {i}" for i in range(100)]}
PARTS = {
    "cifar10": {"train": [f"data_batch_{i}" for i in range(1, 6)], "test": ["test_batch"]},
    "cifar100": {"train": ["train"], "test": ["test"]},
}


def content_of(name: str, part: str) -> tuple[np.ndarray, np.ndarray]:
    """Images (N, 32, 32, 3) and labels of one file, different in each."""
    rng = np.random.default_rng(sum(part.encode()))
    return rng.integers(0, 256, (COUNT, 32, 32, 3), dtype=np.uint8), rng.integers(0, len(NAMES[name]), COUNT)


def write_binary(folder, name: str) -> None:
    for part in [file for files in PARTS[name].values() for file in files]:
        images, labels = content_of(name, part)
        heads = labels[:, None] if name == "cifar10" else np.stack([labels // 5, labels], 1)
        records = np.concatenate([heads.astype(np.uint8), images.transpose(0, 3, 1, 2).reshape(COUNT, -1)], 1)
        records.tofile(folder / f"{part}.bin")
    names = "batches.meta.txt" if name == "cifar10" else "fine_label_names.txt"
    (folder / names).write_text("\n".join(NAMES[name]) + "\n\n")


def write_python(folder, name: str) -> None:
    key = b"labels" if name == "cifar10" else b"fine_labels"
    for part in [file for files in PARTS[name].values() for file in files]:
        images, labels = content_of(name, part)
        content = {b"data": images.transpose(0, 3, 1, 2).reshape(COUNT, -1), key: labels.tolist(), b"batch_label": b"x"}
        (folder / part).write_bytes(pickle.dumps(content, 2))
    names = {b"label_names" if name == "cifar10" else b"fine_label_names": [n.encode() for n in NAMES[name]]}
    (folder / ("batches.meta" if name == "cifar10" else "meta")).write_bytes(pickle.dumps(names, 2))


FOLDERS = {
    ("cifar10", write_binary): "cifar-10-batches-bin",
    ("cifar10", write_python): "cifar-10-batches-py",
    ("cifar100", write_binary): "cifar-100-binary",
    ("cifar100", write_python): "cifar-100-python",
}


@pytest.mark.parametrize("unpacked", [True, False], ids=["beside the archive", "in the folder itself"])
@pytest.mark.parametrize(("name", "write"), FOLDERS, ids=FOLDERS.values())
def test_both_versions_hold_the_same_images(tmp_path, name, write, unpacked):
    folder = tmp_path / FOLDERS[name, write] if unpacked else tmp_path
    folder.mkdir(exist_ok=True)
    write(folder, name)
    for split in ("train", "test"):
        found = load_dataset(f"{name}:{tmp_path}", split)
        expected = [content_of(name, part) for part in PARTS[name][split]]
        np.testing.assert_array_equal(found.images[:], np.concatenate([images for images, _ in expected]))
        np.testing.assert_array_equal(found.labels, np.concatenate([labels for _, labels in expected]))
        assert found.class_names == tuple(NAMES[name])


def test_missing_files_say_what_to_download_and_where_to_put_it(tmp_path):
    with pytest.raises(
        InputError, match=r"no files in .*; download cifar-100-binary.tar.gz from https://.*unpack it there"
    ):
        load_dataset(f"cifar100:{tmp_path}", "train")
    with pytest.raises(InputError, match=r"download cifar-10-binary.tar.gz"):
        load_dataset(f"cifar10:{tmp_path}", "test")
    write_binary(tmp_path, "cifar10")
    (tmp_path / "data_batch_4.bin").unlink()
    with pytest.raises(InputError, match=r"holds no data_batch_4.bin; unpack the archive again"):
        load_dataset(f"cifar10:{tmp_path}", "train")


def damage_length(folder) -> None:
    path = folder / "test_batch.bin"
    path.write_bytes(path.read_bytes()[:-1])


def damage_names(folder) -> None:
    (folder / "batches.meta.txt").write_text("one\n")


def damage_label(folder) -> None:
    path = folder / "test_batch.bin"
    path.write_bytes(b"\x63" + path.read_bytes()[1:])


@pytest.mark.parametrize(
    ("damage", "message"),
    [(damage_length, "no whole number of records"), (damage_names, "1 names"), (damage_label, "labels run")],
)
def test_a_damaged_binary_file_is_refused(tmp_path, damage, message):
    write_binary(tmp_path, "cifar10")
    damage(tmp_path)
    with pytest.raises(DataError, match=message):
        load_dataset(f"cifar10:{tmp_path}", "test")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([], "holds no dict"),
        ({b"labels": [1]}, "no array 'data'"),
        ({b"data": np.zeros((1, 3072), np.int64), b"labels": [1]}, "no array 'data' of uint8"),
        ({b"data": np.zeros((2, 3072), np.uint8), b"labels": [1]}, "no list of 2 labels"),
        ({b"data": np.zeros((1, 3072), np.uint8), b"labels": [None]}, "no list of 1 labels"),
    ],
)
def test_a_python_file_that_holds_something_else_is_refused(tmp_path, content, message):
    write_python(tmp_path, "cifar10")
    (tmp_path / "test_batch").write_bytes(pickle.dumps(content, 2))
    with pytest.raises(DataError, match=message):
        load_dataset(f"cifar10:{tmp_path}", "test")


@pytest.mark.parametrize("name", ["data_batch_1.bin", "batches.meta.txt"])
def test_a_file_far_larger_than_any_published_one_is_refused_before_it_is_read(tmp_path, name):
    write_binary(tmp_path, "cifar10")
    os.truncate(tmp_path / name, 1 << 40)
    with pytest.raises(DataError, match=f"{name}: is of 1048576 MiB, and no file of this kind is larger"):
        load_dataset(f"cifar10:{tmp_path}", "train")
