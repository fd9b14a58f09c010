from __future__ import annotations

import numpy as np
import pandas
import pytest

from vsfix.graph_passes.errors import DataError, InputError
from vsfix.pipeline.data.data_forms import GivenData, read_data
from vsfix.pipeline.data.fitting import ModelInput
from vsfix.pipeline.data.loading import load_samples
from vsfix.pipeline.data.tables import read_table, table_file

ROWS = np.random.default_rng(0).normal(size=(20, 3)).astype(np.float32)
ONE = [ModelInput("x", np.dtype(np.float32), (3,))]
EACH = [ModelInput(name, np.dtype(np.float32), (1,)) for name in ("b", "a")]


def write(path, text):
    path.write_text(text, encoding="utf-8")
    return path


def load(spec, inputs=ONE, **changes):
    options = {"split": "test", "preprocessing": None, "samples": None, "seed": 0, **changes}
    return load_samples(spec, input_names=[one.name for one in inputs], inputs=inputs, **options)


def as_csv(path, frame=None, **options):
    frame = pandas.DataFrame(ROWS, columns=list("abc")) if frame is None else frame
    frame.to_csv(path, **{"index": False, **options})
    return str(path)


def test_a_table_of_the_rows_is_the_rows_to_the_bit(tmp_path):
    found = load(as_csv(tmp_path / "d.csv")).inputs["x"]
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, ROWS)


@pytest.mark.parametrize(
    "options", [{"sep": ";"}, {"sep": "\t"}, {"index": True}, {"quoting": 1}, {"encoding": "utf-8-sig"}]
)
def test_other_ways_to_write_it_are_read_too(options, tmp_path):
    np.testing.assert_array_equal(load(as_csv(tmp_path / "d.csv", **options)).inputs["x"], ROWS)


def test_a_tsv_is_read_by_its_tabs(tmp_path):
    np.testing.assert_array_equal(load(as_csv(tmp_path / "d.tsv", sep="\t")).inputs["x"], ROWS)


@pytest.mark.parametrize("name", ["label", "labels", "Target"])
def test_the_label_is_no_input(name, tmp_path):
    frame = pandas.DataFrame({"a": ROWS[:, 0], name: np.arange(20), "b": ROWS[:, 1], "c": ROWS[:, 2]})
    for data in (as_csv(tmp_path / "d.csv", frame), frame):
        found = load(data)
        np.testing.assert_array_equal(found.inputs["x"], ROWS)
        np.testing.assert_array_equal(found.labels, np.arange(20))
        assert found.labels.dtype.kind == "i"
        assert load(data, labelled=False).labels is None


def test_a_person_names_the_label(tmp_path):
    frame = pandas.DataFrame({"a": ROWS[:, 0], "price, net": ROWS[:, 1] + 0.5, "b": ROWS[:, 1], "c": ROWS[:, 2]})
    path = as_csv(tmp_path / "d.csv", frame)
    found = load(f"{path}:label=price, net")
    np.testing.assert_array_equal(found.inputs["x"], ROWS)
    np.testing.assert_allclose(found.labels, ROWS[:, 1] + 0.5, rtol=1e-7)
    assert table_file(f"{path}:label=price, net") == (path, "price, net")
    with pytest.raises(InputError, match="has no column 'prize'"):
        load(f"{path}:label=prize")


def test_columns_go_to_the_inputs_by_name_where_each_is_one(tmp_path):
    frame = pandas.DataFrame({"a": ROWS[:, 0], "b": ROWS[:, 1], "c": ROWS[:, 2]})
    for data in (as_csv(tmp_path / "d.csv", frame), frame, [frame[:12], frame[12:]]):
        found = load(data, EACH).inputs
        assert list(found) == ["b", "a"]
        np.testing.assert_array_equal(found["a"], ROWS[:, :1])
        np.testing.assert_array_equal(found["b"], ROWS[:, 1:2])


def test_columns_of_text_are_left_out_and_that_is_noted(tmp_path):
    frame = pandas.DataFrame(ROWS, columns=list("abc"))
    frame.insert(1, "city", ['a, "b"\nc'] * 20)
    given = GivenData(as_csv(tmp_path / "d.csv", frame))
    np.testing.assert_array_equal(load(given).inputs["x"], ROWS)
    assert ["city" in note for note in given.notes] == [True]
    np.testing.assert_array_equal(load(frame).inputs["x"], ROWS)
    for data in (frame, [frame[:10], frame[10:]]):
        given = GivenData(data)
        np.testing.assert_array_equal(load(given).inputs["x"], ROWS)
        assert any("columns of text are left out: city" in note for note in given.notes)


@pytest.mark.parametrize("width", [3, 0])
def test_a_column_that_is_called_as_the_only_input_is_one_of_its_columns(width, tmp_path):
    frame = pandas.DataFrame(ROWS, columns=["a", "x", "c"])
    wanted = [ModelInput("x", np.dtype(np.float32), (width,))]
    for data in (as_csv(tmp_path / "d.csv", frame), frame):
        np.testing.assert_array_equal(load(data, wanted).inputs["x"], ROWS)
        for shape in ((1,), ()):
            one = load(data, [ModelInput("x", np.dtype(np.float32), shape)]).inputs["x"]
            np.testing.assert_array_equal(one.ravel(), ROWS[:, 1])


REFUSED = {
    "missing": ("a,b,c\n1,2,3\n4,,6\n", "line 3, column 'b' is empty"),
    "no number": ("a,b,c\n1,2,3\n4,n/a,6\n", "line 3, column 'b' is 'n/a', no number"),
    "not a number": ("a,b,c\n1,2,3\n4,nan,6\n", "line 3, column 'b' is 'nan'"),
    "infinite": ("a,b,c\n1,2,3\n4,inf,6\n", "line 3, column 'b'"),
    "decimal commas": ('a;b;c\n1;2;3\n4;"5,5";6\n', "line 3, column 'b' is '5,5'; write numbers with a point"),
    "separator": (
        "a;b;c\n0,1;0,2;0,3\n",
        "column 'a' is '0,1'; write numbers with a point .* semicolons, commas or tabs",
    ),
    "commas between and in": (
        "a,b,c\n0,1,0,2,0,3\n",
        "line 2 has 6 cells, .*commas separate cells: write numbers with a",
    ),
    "nothing but decimal commas": ("a;b;c;d\n1;2;3;5,5\n", "line 2, column 'd' is '5,5'; write numbers with a point"),
    "after an empty cell": ("a;b;c;d\n1;2;3;\n1;2;3;5,5\n", "line 3, column 'd' is '5,5'; write numbers with a point"),
    "thousands": ('a,b,c,d\n1,2,3,"1,000"\n', "line 2, column 'd' is '1,000'; write numbers with a point"),
    "after a quoted break": ('a,b,c,t\n1,2,3,"x\ny"\n4,?,6,z\n', "line 4, column 'b' is '\\?'"),
    "cells": ("a,b,c\n1,2,3\n4,5\n", "line 3 has 2 cells, the first row 3"),
    "twice": ("a,b,b\n1,2,3\n", "two columns are called 'b'"),
    "no names": ("1,2,3\n4,5,6\n", "must name the columns"),
    "no row": ("a,b,c\n", "no row"),
    "nothing": ("", "is empty"),
    "too few": ("a,b,city\n1,2,x\n", r"has 2 columns of numbers \(a, b; not counted: city\), the model takes 3"),
    "too many": ("a,b,c,d,label\n1,2,3,4,0\n", r"has 4 columns of numbers \(a, b, c, d; not counted: label\)"),
    "two labels": ("a,b,c,label,target\n1,2,3,4,0\n", "which is the label, label or target"),
    "open quote": ('a,b,c\n1,2,"3\n', "no table of cells"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_table_that_does_not_serve_is_refused_by_row_and_column(name, tmp_path):
    text, words = REFUSED[name]
    with pytest.raises(InputError, match=words):
        load(str(write(tmp_path / "d.csv", text)))


def test_one_column_too_many_may_be_the_label_and_the_advice_works(tmp_path):
    path = write(tmp_path / "d.csv", "a,b,c,price\n1,2,3,4\n")
    with pytest.raises(DataError) as caught:
        load(str(path))
    advice = str(caught.value).rpartition("FILE.csv")[2]
    assert advice == ":label=price"
    np.testing.assert_array_equal(load(f"{path}{advice}").inputs["x"], [[1, 2, 3]])


@pytest.mark.parametrize("text", ["a,b,c,d,label\n1,2,3,4,0\n", "a,b\n1,2\n", "a,b,c,d,e\n1,2,3,4,5\n"])
def test_where_no_label_would_help_none_is_spoken_of(text, tmp_path):
    with pytest.raises(DataError, match="the model takes 3") as caught:
        load(str(write(tmp_path / "d.csv", text)))
    assert ":label=" not in str(caught.value)


def test_what_is_no_text_is_refused(tmp_path):
    (tmp_path / "d.csv").write_bytes(b"a,b\n\xff\xfe,2\n")
    with pytest.raises(DataError, match="is not UTF-8"):
        read_table(tmp_path / "d.csv")
    with pytest.raises(InputError, match="no such file"):
        read_table(tmp_path / "gone.csv")


def test_labels_of_text_are_refused_where_labels_are_wanted(tmp_path):
    path = write(tmp_path / "d.csv", "a,b,c,label\n1,2,3,cat\n4,5,6,dog\n")
    with pytest.raises(DataError, match="column 'label' holds text"):
        load(str(path))
    assert len(load(str(path), labelled=False)) == 2


def test_a_model_of_several_matrices_is_told_of_npz(tmp_path):
    inputs = [ModelInput("image", np.dtype(np.float32), (1, 8, 8)), ModelInput("row", np.dtype(np.float32), (3,))]
    with pytest.raises(DataError, match=r"no column 'image'.*numpy.savez"):
        load(as_csv(tmp_path / "d.csv"), inputs)


def test_frames_and_series_are_read_as_they_are():
    frame = pandas.DataFrame(ROWS, columns=list("abc"))
    series = pandas.Series(np.arange(20) % 3)
    for data in ((frame, series), [(frame[:8], series[:8]), (frame[8:], series[8:])]):
        found = load(data)
        np.testing.assert_array_equal(found.inputs["x"], ROWS)
        np.testing.assert_array_equal(found.labels, np.arange(20) % 3)
    wide = frame.astype({"a": "float64", "b": "object"})
    np.testing.assert_array_equal(load(wide).inputs["x"], ROWS)


@pytest.mark.parametrize("value", [None, np.nan, pandas.NA])
def test_a_missing_value_of_a_frame_is_refused_by_row_and_column(value):
    frame = pandas.DataFrame(ROWS, columns=list("abc")).astype(object)
    frame.loc[3, "b"] = value
    for data in (frame, frame.convert_dtypes()):
        with pytest.raises(DataError, match="row 3, column 'b'"):
            read_data(data, ["x"], samples=None, seed=0, inputs=ONE)


class Frame:
    """A frame of another library: columns, their types, and nothing of pandas."""

    columns = ("a", "b", "c")
    dtypes = ("f4", "f4", "f4")

    def __len__(self):
        return len(ROWS)

    def __getitem__(self, name):
        return ROWS[:, self.columns.index(name)]


def test_a_frame_need_not_be_of_pandas():
    np.testing.assert_array_equal(load(Frame()).inputs["x"], ROWS)
