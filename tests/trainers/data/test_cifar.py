from __future__ import annotations

import os
import pickle
import struct

import numpy as np
import pytest

from vsfix.graph_passes.errors import DataError, InputError
from vsfix.trainers.data.datasets import load_dataset

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


def bytes_op(content: bytes) -> bytes:
    """BINSTRING, which Python 2 wrote for every string."""
    return b"T" + struct.pack("<i", len(content)) + content


def python2_array(values: np.ndarray) -> bytes:
    """A uint8 array of two axes as Python 2 and numpy 1 wrote it, protocol 2."""
    rows, columns = values.shape
    shape = b"M" + struct.pack("<H", rows) + b"M" + struct.pack("<H", columns) + b"\x86"
    dtype = (
        b"cnumpy\ndtype\n"
        + bytes_op(b"u1")
        + b"K\x00K\x01\x87R(K\x03"
        + bytes_op(b"|")
        + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    )
    head = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85" + bytes_op(b"b") + b"\x87R"
    return head + b"(K\x01" + shape + dtype + b"\x89" + bytes_op(values.tobytes()) + b"tb"


def read_test_batch(folder, content: bytes):
    """The test set whose one batch is this pickle."""
    write_python(folder, "cifar10")
    (folder / "test_batch").write_bytes(content)
    return load_dataset(f"cifar10:{folder}", "test")


VALUES = np.arange(2 * 3072, dtype=np.uint64).astype(np.uint8).reshape(2, 3072)
PYTHON_2 = (
    b"\x80\x02}q\x01(" + bytes_op(b"data") + python2_array(VALUES) + bytes_op(b"labels") + b"]q\x02(K\x03K\x05eu."
)


def test_a_pickle_of_python_2_is_read(tmp_path):
    found = read_test_batch(tmp_path, PYTHON_2)
    np.testing.assert_array_equal(found.images[:], VALUES.reshape(2, 3, 32, 32).transpose(0, 2, 3, 1))
    np.testing.assert_array_equal(found.labels, [3, 5])


@pytest.mark.parametrize("protocol", [2, 3, 4])
def test_a_pickle_of_today_is_read(tmp_path, protocol):
    found = read_test_batch(tmp_path, pickle.dumps({"data": VALUES, "labels": [3, 5], b"names": [b"\xff"]}, protocol))
    np.testing.assert_array_equal(found.images[:], VALUES.reshape(2, 3, 32, 32).transpose(0, 2, 3, 1))


class Calls:
    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def hostile(canary: str) -> dict[str, bytes]:
    system = f"touch {canary}".encode()
    return {
        "reduce": pickle.dumps(Calls(os.system, f"touch {canary}"), 2),
        "reduce, protocol 4": pickle.dumps(Calls(os.system, f"touch {canary}"), 4),
        "eval": pickle.dumps({"data": Calls(eval, f"open({canary!r}, 'w')")}, 2),
        "inst": b"(S'touch " + canary.encode() + b"'\nios\nsystem\n.",
        "obj": b"(cos\nsystem\n" + bytes_op(system) + b"o.",
        "newobj": b"\x80\x02cos\nsystem\n" + bytes_op(system) + b"\x85\x81.",
        "build": b"\x80\x02}}" + bytes_op(b"__setstate__") + b"cos\nsystem\nsb.",
        "extension": b"\x80\x02\x82\x01)R.",
        "persistent id": b"Pos.system\n.",
        "numpy's own loader": b"cnumpy\nload\n" + bytes_op(b"x.npy") + b"\x85R.",
        "a dotted name": b"\x80\x04" + b"\x8c\x05numpy\x8c\x0fdtype.__class__\x93.",
        "encode as a way to call": b"c_codecs\nencode\n" + bytes_op(system) + bytes_op(b"zip") + b"\x86R.",
        "array of objects": pickle.dumps(np.array([os.getcwd], dtype=object), 2),
        "a name as the value": b"cnumpy\ndtype\n.",
    }


@pytest.mark.parametrize("name", hostile("x"))
def test_nothing_in_a_pickle_is_executed(tmp_path, name):
    canary = tmp_path / "canary"
    with pytest.raises(DataError) as caught:
        read_test_batch(tmp_path, hostile(str(canary))[name])
    assert "\n" not in str(caught.value)
    assert not canary.exists()


def test_the_canary_of_the_test_would_sing(tmp_path):
    canary = tmp_path / "canary"
    pickle.loads(hostile(str(canary))["reduce"])
    assert canary.exists()


KEYS = b"\x80\x02}" + b")" + b"\x85" * 1_000_000 + b"Ns."  # a tuple in a tuple in a tuple ..., whose hash is asked for


@pytest.mark.parametrize(
    "content",
    [
        *(b"", b"\x80\x02", b".", b"h\x05.", b"K\x01a.", b"t.", b"R.", b"not a pickle at all"),
        *(PYTHON_2[:-1], PYTHON_2[:4000], b"\x8b\xff\xff\xff\x7f.", b"I" + b"9" * 5000 + b"\n."),
        b"\x80\x02]q\x00h\x00a.",  # a list that holds itself
        b"\x80\x02Nr\xff\xff\xff\x7f.",  # a memo of 2 ** 31 entries
        b"\x80\x04\x8e" + b"\xff" * 7 + b"\x0f.",  # bytes that the file does not have
        b"Np2000000000\n.",
        KEYS,
        b"\x80\x02cnumpy\ndtype\n}" + bytes_op(b"a") + b"Nsb.",  # the state of a class
    ],
)
def test_a_damaged_or_greedy_pickle_is_refused_in_one_line(tmp_path, content):
    with pytest.raises(DataError) as caught:
        read_test_batch(tmp_path, content)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("shape", [b"M\xff\xffM\x00\x0c\x86", b"J\xff\xff\xff\xffM\x00\x0c\x86", b"K\x01\x85"])
def test_an_array_that_does_not_fill_its_shape_is_refused(tmp_path, shape):
    assert PYTHON_2.count(b"M\x02\x00M\x00\x0c\x86") == 1
    with pytest.raises(DataError, match="no array 'data'"):
        read_test_batch(tmp_path, PYTHON_2.replace(b"M\x02\x00M\x00\x0c\x86", shape))


def test_a_text_that_is_named_again_and_again_does_not_make_much_of_a_small_file(tmp_path):
    encode = b"c_codecs\nencode\nh\x01X\x06\0\0\0latin1\x86R0"
    text = b"X" + struct.pack("<I", 1 << 20) + bytes(1 << 20) + b"q\x010"
    assert len(read_test_batch(tmp_path, b"\x80\x02" + text + encode + PYTHON_2[2:]).labels) == 2
    with pytest.raises(DataError, match="not one of CIFAR's"):
        read_test_batch(tmp_path, b"\x80\x02" + text + encode * 1000 + PYTHON_2[2:])
