from __future__ import annotations

import os
import pickle
import struct
import time
from contextlib import suppress

import numpy as np
import pytest

from vsfix.graph_passes.errors import DataError, InputError
from vsfix.trainers.pickled_arrays import read_pickle


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


def write(tmp_path, content: bytes):
    path = tmp_path / "file"
    path.write_bytes(content)
    return path


def test_a_pickle_of_python_2_is_read(tmp_path):
    values = np.arange(24, dtype=np.uint8).reshape(2, 12)
    content = (
        b"\x80\x02}q\x01(" + bytes_op(b"data") + python2_array(values) + bytes_op(b"labels") + b"]q\x02(K\x03K\x05eu."
    )
    found = read_pickle(write(tmp_path, content))
    assert found[b"labels"] == [3, 5]
    assert found[b"data"].dtype == np.uint8
    np.testing.assert_array_equal(found[b"data"], values)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize(
    "value",
    [
        {
            b"data": b"\x00\xff" * 300,
            b"n": [1, -1, 2**40, 0.5, None, True, False, "\u00e9"],
            b"t": (1, (2, 3), (4, 5, 6, 7), ()),
        },
        {"nested": [[1, 2], {"a": [3]}]},
    ],
)
def test_plain_values_come_back_as_pickle_itself_reads_them(tmp_path, protocol, value):
    content = pickle.dumps(value, protocol)
    assert read_pickle(write(tmp_path, content)) == pickle.loads(content)


@pytest.mark.parametrize("protocol", [2, 3, 4])
@pytest.mark.parametrize(
    "array",
    [np.arange(6, dtype=np.uint8).reshape(2, 3), np.asfortranarray(np.eye(2, 3, dtype=np.float32)), np.arange(3)],
)
def test_arrays_come_back_as_pickle_itself_reads_them(tmp_path, protocol, array):
    found = read_pickle(write(tmp_path, pickle.dumps([array], protocol)))[0]
    assert found.dtype == array.dtype
    np.testing.assert_array_equal(found, array)


class Calls:
    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def hostile(canary: str) -> dict[str, bytes]:
    touch = f"open({canary!r}, 'w')"
    system = f"touch {canary}".encode()
    return {
        "reduce": pickle.dumps(Calls(os.system, f"touch {canary}"), 2),
        "reduce, protocol 4": pickle.dumps(Calls(os.system, f"touch {canary}"), 4),
        "eval": pickle.dumps({"data": Calls(eval, touch)}, 2),
        "inst": b"(S'touch " + canary.encode() + b"'\nios\nsystem\n.",
        "obj": b"(cos\nsystem\n" + bytes_op(system) + b"o.",
        "newobj": b"\x80\x02cos\nsystem\n" + bytes_op(system) + b"\x85\x81.",
        "build": b"\x80\x02}}" + bytes_op(b"__setstate__") + b"cos\nsystem\nsb.",
        "extension": b"\x80\x02\x82\x01)R.",
        "persistent id": b"Pos.system\n.",
        "numpy's own loader": b"cnumpy\nload\n" + bytes_op(b"x.npy") + b"\x85R.",
        "encode as a way to call": b"c_codecs\nencode\n" + bytes_op(system) + bytes_op(b"zip") + b"\x86R.",
        "array of objects": pickle.dumps(np.array([os.getcwd], dtype=object), 2),
        "a name as the value": b"cnumpy\ndtype\n.",
        "a name inside": b"]cnumpy\ndtype\na.",
    }


@pytest.mark.parametrize("name", hostile("x"))
def test_nothing_is_executed(tmp_path, name):
    canary = tmp_path / "canary"
    with pytest.raises(DataError) as caught:
        read_pickle(write(tmp_path, hostile(str(canary))[name]))
    assert "\n" not in str(caught.value)
    assert not canary.exists()


def test_the_canary_of_the_test_would_sing(tmp_path):
    canary = tmp_path / "canary"
    pickle.loads(hostile(str(canary))["reduce"])
    assert canary.exists()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x80\x02",
        b".",
        b"\x80\x02]q\x01(K\x01",
        pickle.dumps({"data": list(range(100))}, 2)[:-20],
        b"\x8b\xff\xff\xff\x7f.",
        b"h\x05.",
        b"K\x01a.",
        b"(K\x01K\x02K\x03d.",
        b"t.",
        b"u.",
        b"R.",
        b"I" + b"9" * 5000 + b"\n.",
        b"\x80\x02]q\x00h\x00a.",  # a list that holds itself
        b"\x80\x02" + b"]" * 100 + b"a" * 99 + b".",
        b"not a pickle at all",
    ],
)
def test_a_damaged_pickle_is_refused_in_one_line(tmp_path, content):
    with pytest.raises(DataError) as caught:
        read_pickle(write(tmp_path, content))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("shape", [b"M\xff\xffM\xff\xff\x86", b"J\xff\xff\xff\xffJ\xff\xff\xff\xff\x86", b"K\x01\x85"])
def test_an_array_that_does_not_fill_its_shape_is_refused(tmp_path, shape):
    content = python2_array(np.zeros((2, 2), np.uint8)).replace(b"M\x02\x00M\x02\x00\x86", shape)
    with pytest.raises(DataError, match=r"shape|damaged"):
        read_pickle(write(tmp_path, content + b"."))


@pytest.mark.parametrize(
    "content",
    [
        b"\x80\x02"
        + b"]q\x00"
        + b"".join(b"](" + b"h" + bytes([i]) * 1 + (b"h" + bytes([i])) * 999 + b"eq" + bytes([i + 1]) for i in range(6))
        + b".",
        b"\x80\x02" + b"0" * 0 + b"K\x01" * 5_100_000 + b".",
        b"\x80\x02(" + b"(K\x01t" * 300_000 + b"l.",
    ],
    ids=[
        "a thousand of a thousand of a thousand ...",
        "millions of numbers on the stack",
        "many tuples on a deep stack",
    ],
)
def test_a_small_file_takes_no_long_time_and_no_large_memory(tmp_path, content):
    started = time.monotonic()
    with suppress(DataError):
        read_pickle(write(tmp_path, content))
    assert time.monotonic() - started < 20


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        read_pickle(tmp_path / "none")


@pytest.mark.parametrize("key", [b")" + b"\x85" * 1_000_000, b"K\x01"], ids=["deep", "number"])
@pytest.mark.parametrize("form", [b"\x80\x02}" + b"%bNs.", b"\x80\x02}(" + b"%bNu.", b"\x80\x02(" + b"%bNd."])
def test_a_dict_has_texts_for_keys(key, form, tmp_path):
    (tmp_path / "a").write_bytes(form % key)
    with pytest.raises(DataError, match="keys are no texts"):
        read_pickle(tmp_path / "a")


def test_a_text_that_is_named_again_and_again_does_not_make_much_of_a_small_file(tmp_path):
    text = b"X" + struct.pack("<I", 1 << 20) + bytes(1 << 20) + b"q\x01"
    encode = b"c_codecs\nencode\nh\x01X\x06\0\0\0latin1\x86R"
    once = b"\x80\x02(" + text + encode + b"t."
    assert read_pickle(write(tmp_path, once)) == ("\0" * (1 << 20), bytes(1 << 20))
    with pytest.raises(DataError, match="unpacks to more than its size"):
        read_pickle(write(tmp_path, once.replace(encode, encode * 1000)))
