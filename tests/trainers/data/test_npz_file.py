from __future__ import annotations

import pickle
import zipfile

import numpy as np
import pytest

from vsfix.graph_passes.errors import DataError, InputError
from vsfix.trainers.data import npz_file
from vsfix.trainers.data.datasets import load_dataset
from vsfix.trainers.data.npz_file import read_npy, read_npz


class Bomb:
    """Runs code when it is unpickled."""

    def __reduce__(self):
        return (pytest.fail, ("code in the file was run",))


def test_what_was_saved_comes_back(tmp_path):
    path = tmp_path / "a.npz"
    np.savez_compressed(path, x=np.arange(6.0).reshape(2, 3), y=np.array([1, 2]))
    arrays = read_npz(path)
    assert list(arrays) == ["x", "y"]
    np.testing.assert_array_equal(arrays["x"], np.arange(6.0).reshape(2, 3))


@pytest.mark.parametrize("array", [np.arange(6.0).reshape(2, 3), np.asfortranarray(np.ones((3, 2))), np.zeros((0, 3))])
def test_a_single_array_comes_back_mapped_from_the_disk(array, tmp_path):
    np.save(tmp_path / "a.npy", array)
    found = read_npy(tmp_path / "a.npy")
    assert isinstance(found, np.memmap)
    np.testing.assert_array_equal(found, array)
    with pytest.raises(ValueError, match="read-only"):
        found[...] = 1


def write_npy(path, change):
    np.save(path, np.ones((300, 2)))
    path.write_bytes(change(path.read_bytes()))
    return path


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda whole: whole[:500], "is damaged"),
        (lambda whole: whole[:9], "is damaged"),
        (lambda whole: whole.replace(b"300", b"(((").replace(b"'", b'"', 1), "is damaged"),
        (lambda whole: whole.replace(b"(300, 2)", b"(300,-2)"), "is damaged"),
        (lambda whole: b"PK" + whole, "is not an .npy file"),
        (lambda whole: b"", "is not an .npy file"),
    ],
)
def test_what_is_no_single_array_is_refused(change, words, tmp_path):
    with pytest.raises(DataError, match=words):
        read_npy(write_npy(tmp_path / "a.npy", change))


def test_objects_of_a_single_array_are_not_loaded(tmp_path):
    np.save(tmp_path / "a.npy", np.array([Bomb()], dtype=object))
    with pytest.raises(DataError, match="Python objects, which are never loaded"):
        read_npy(tmp_path / "a.npy")
    with pytest.raises(InputError, match="no such file"):
        read_npy(tmp_path / "b.npy")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(InputError, match=r"gone\.npz: no such file"):
        read_npz(tmp_path / "gone.npz")


@pytest.mark.parametrize("content", [b"", b"text", b"PK\x03\x04 cut", pickle.dumps([1, 2])])
def test_another_kind_of_file_is_refused(tmp_path, content):
    path = tmp_path / "a.npz"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"is not an \.npz file"):
        read_npz(path)


def test_a_single_array_is_refused(tmp_path):
    with (tmp_path / "a.npz").open("wb") as file:
        np.save(file, np.zeros(3))
    with pytest.raises(DataError, match="is a single array"):
        read_npz(tmp_path / "a.npz")


def test_objects_are_never_loaded(tmp_path):
    path = tmp_path / "a.npz"
    np.savez(path, x=np.array([Bomb()], dtype=object))
    with pytest.raises(DataError, match="array 'x' holds Python objects"):
        read_npz(path)


def test_a_damaged_array_is_named(tmp_path):
    path = tmp_path / "a.npz"
    np.savez(path, x=np.zeros(1000))
    content = bytearray(path.read_bytes())
    content[600:700] = b"\xff" * 100
    path.write_bytes(content)
    with pytest.raises(DataError, match="array 'x' is damaged"):
        read_npz(path)


def test_a_member_that_is_no_array_is_refused(tmp_path):
    path = tmp_path / "a.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("notes.txt", "hello")
    with pytest.raises(DataError, match="is no array"):
        read_npz(path)


STRANGE = [
    "{'descr': '<f4', 'fortran_order': False, 'shape': (2**70,)}",
    "{'descr': '<f4', 'fortran_order': False, 'shape': (1180591620717411303424,)}",
    "{'descr': ',', 'fortran_order': False, 'shape': (1,)}",
    "{'descr': ('f4',), 'fortran_order': False, 'shape': (1,)}",
    "{1: 2, 'a': 3}",
    "{'descr': '<f4', 'fortran_order': False, 'shape': (True, 2)}",
]


@pytest.mark.parametrize("header", ["{'descr': '<f4', 'shape': (1,", "{'descr': '<f4L', ((((\n", "\\", *STRANGE])
def test_a_header_that_python_can_t_read_is_damage(tmp_path, header):
    path = tmp_path / "a.npz"
    with zipfile.ZipFile(path, "w") as archive, archive.open("x.npy", "w") as member:
        member.write(np.lib.format.magic(1, 0) + len(header).to_bytes(2, "little") + header.encode())
    with pytest.raises(DataError, match="array 'x' is damaged"):
        read_npz(path)


def test_an_archive_of_a_version_to_come_is_refused(tmp_path):
    path = tmp_path / "a.npz"
    np.savez(path, x=np.zeros(10))
    content = bytearray(path.read_bytes())
    content[content.index(b"PK\1\2") + 6] = 109
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"is not an \.npz file"):
        read_npz(path)


@pytest.mark.parametrize(("offset", "value"), [(8, 1), (10, 99)])  # of the entry: its flags, how it is packed
def test_an_encrypted_member_and_one_of_unknown_packing_are_refused(tmp_path, offset, value):
    path = tmp_path / "a.npz"
    np.savez(path, x=np.zeros(10))
    content = bytearray(path.read_bytes())
    content[content.index(b"PK\1\2") + offset] = value
    content[content.index(b"PK\3\4") + offset - 2] = value
    path.write_bytes(content)
    with pytest.raises(DataError, match="array 'x' can't be unpacked"):
        read_npz(path)


def test_a_header_that_claims_a_petabyte_is_refused(tmp_path):
    path = tmp_path / "a.npz"
    with zipfile.ZipFile(path, "w") as archive, archive.open("x.npy", "w") as member:
        np.lib.format.write_array_header_1_0(member, {"descr": "|u1", "fortran_order": False, "shape": (1 << 50,)})
    with pytest.raises(DataError, match="array 'x' is damaged"):
        read_npz(path)


def test_numbers_of_the_other_byte_order_are_brought_to_the_machines(tmp_path):
    values = np.array([[1.5, -2.0], [300.0, 0.25]])
    np.savez(tmp_path / "a.npz", x=values.astype(">f4"), y=values.astype("<f4"), z=np.array([1, 258], dtype=">i2"))
    arrays = read_npz(tmp_path / "a.npz")
    assert all(array.dtype.isnative for array in arrays.values())
    assert arrays["x"].tolist() == arrays["y"].tolist() == values.tolist()
    assert arrays["z"].tolist() == [1, 258]


def test_a_small_file_that_unpacks_to_very_much_is_refused_before_it_does(tmp_path, monkeypatch):
    monkeypatch.setattr(npz_file, "_LARGE", 1 << 20)
    np.savez_compressed(tmp_path / "bomb.npz", x=np.zeros(1 << 20))
    np.savez_compressed(tmp_path / "large.npz", x=np.random.default_rng(0).integers(0, 256, 1 << 21, dtype=np.uint8))
    np.savez(tmp_path / "plain.npz", x=np.zeros(1 << 20))
    with pytest.raises(DataError, match=r"bomb\.npz: unpacks to 8 MiB, over 100 times its size"):
        read_npz(tmp_path / "bomb.npz")
    assert read_npz(tmp_path / "large.npz")["x"].size == 1 << 21
    assert read_npz(tmp_path / "plain.npz")["x"].size == 1 << 20


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("second", ["x.npy", "x"])
def test_two_arrays_of_one_name_are_refused(tmp_path, second):
    path = tmp_path / "file.npz"
    np.savez(path, x=np.zeros(3))
    with zipfile.ZipFile(path) as archive:
        content = archive.read("x.npy")
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(second, content)
    with pytest.raises(DataError, match="two of its arrays have the same name"):
        read_npz(path)


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
