"""The same rows in every form give the same verdict and the same bits; what a person says of images works."""

from __future__ import annotations

import json
import sys

import numpy as np
import onnx
import pandas
import pytest
from PIL import Image

import vsfix
from vsfix.graph_passes.errors import InputError
from vsfix.graph_passes.statistics.batches import LazyBatch
from vsfix.pipeline.data import loading
from vsfix.pipeline.data.calibration import calibration_batches, labelled_samples, read_preprocessing
from vsfix.pipeline.data.data_forms import GivenData
from vsfix.pipeline.data.fitting import ModelInput, Normalization
from vsfix.pipeline.data.loading import load_samples
from vsfix.trainers.data.datasets import load_dataset

ROWS = np.random.default_rng(0).normal(size=(64, 6)).astype(np.float32)
LABELS = (ROWS[:, 0] > 0).astype(np.int64)
COLUMNS = list("abcdef")
CODE = """
import itertools
import numpy as np

def batches():
    import beside_it  # found while it runs, too
    rows = np.load("rows.npy")
    yield from (rows[start : start + 16] for start in range(0, 64, 16))

def labelled():
    rows = np.load("rows.npy")
    return rows, (rows[:, 0] > 0).astype(int)

def endless():
    for number in itertools.count():
        if number > 9:
            raise RuntimeError("read too far")
        yield np.load("rows.npy")[:16] + np.float32(number)

def text():
    return "digits"

def failing():
    raise KeyError("no such disk")
"""
ONE_INPUT = {"split": "test", "preprocessing": None, "input_names": ["input"], "samples": None, "seed": 0}


@pytest.fixture
def net(parse):
    """Linear, Dropout 0.5, BatchNorm, ReLU, Linear on rows of six; its statistics are true under the noise."""
    rng = np.random.default_rng(1)
    first, last = rng.normal(size=(6, 16)).astype(np.float32), rng.normal(size=(16, 2)).astype(np.float32)
    seen = ROWS @ first
    mean, power = seen.mean(0), (seen**2).mean(0)
    weights = {
        "w": first,
        "scale": np.ones(16, np.float32),
        "shift": np.ones(16, np.float32),
        "mean": mean,
        "var": 2 * power - mean**2,
        "v": last,
        "ratio": np.array(0.5, np.float32),
    }
    return parse(
        """(float[N, 6] input) => (float[N, 2] logits) {
            hidden = MatMul (input, w)
            dropped = Dropout (hidden, ratio)
            normal = BatchNormalization (dropped, scale, shift, mean, var)
            positive = Relu (normal)
            logits = MatMul (positive, v)
        }""",
        weights,
    )


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with the rows in every form, which is the current one."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    np.save("rows.npy", ROWS)
    np.save("rows64.npy", ROWS.astype(np.float64))
    np.savez("rows.npz", input=ROWS, labels=LABELS)
    pandas.DataFrame(ROWS, columns=COLUMNS).assign(target=LABELS).to_csv("rows.csv", index=False)
    for name, code in (("rows_of_mine", CODE), ("beside_it", "")):
        (tmp_path / f"{name}.py").write_text(code)
    yield tmp_path
    for name in ("rows_of_mine", "beside_it"):
        sys.modules.pop(name, None)


FORMS = {
    "npy": lambda: "rows.npy",
    "float64 npy": lambda: "rows64.npy",
    "npz": lambda: "rows.npz",
    "csv": lambda: "rows.csv",
    "function": lambda: "rows_of_mine:batches",
    "function of a batch": lambda: "rows_of_mine:labelled",
    "array": lambda: ROWS,
    "float64 array": lambda: ROWS.astype(np.float64),
    "generator": lambda: (ROWS[start : start + 16] for start in range(0, 64, 16)),
    "frame": lambda: pandas.DataFrame(ROWS, columns=COLUMNS),
    "frame of float64": lambda: pandas.DataFrame(ROWS.astype(np.float64), columns=COLUMNS).assign(label=LABELS),
}
LABELLED = ("npz", "csv", "function of a batch", "frame of float64")


def test_the_same_rows_give_the_same_verdict_and_the_same_bits_in_every_form(net, folder):
    made = {name: vsfix.optimize(net, form(), method="exact") for name, form in FORMS.items()}
    first = made["array"]
    assert any(row.repaired for row in first.report.batch_norms), first.verdict
    for name, found in made.items():
        assert (found.status, found.verdict) == (first.status, first.verdict), name
        assert found.model.SerializeToString() == first.model.SerializeToString(), name
    other = vsfix.optimize(net, ROWS * np.float32(1.01), method="exact")
    assert other.model.SerializeToString() != first.model.SerializeToString()


def test_the_same_labels_give_the_same_scores_in_every_form_that_has_them(net, folder):
    made = [vsfix.optimize(net, ROWS, eval_data=FORMS[name](), method="none").scores for name in LABELLED]
    assert made == [made[0]] * len(made)
    assert 50 < made[0].before < 100


def test_a_cast_is_noted_once_in_the_log_and_in_the_document_and_moves_no_verdict(net, folder, caplog):
    found = vsfix.inspect(net, "rows64.npy")
    said = [record.message for record in caplog.records if "cast to float32" in record.message]
    assert len(said) == 1
    assert [said[0] in warning for warning in found.to_dict()["warnings"]].count(True) == 1
    plain = vsfix.inspect(net, "rows.npy")
    assert (found.status, found.verdict) == (plain.status, plain.verdict)
    assert plain.data_notes == ()


def test_of_a_large_npy_file_the_rows_wanted_are_read_alone(net, folder):
    batches = calibration_batches(net, "rows64.npy", samples=10, batch_size=4, seed=3, max_memory=0)
    assert all(isinstance(batch, LazyBatch) for batch in batches)
    held = calibration_batches(net, "rows.npz", samples=10, batch_size=4, seed=3)
    for lazy, other in zip(batches, held, strict=True):
        np.testing.assert_array_equal(lazy["input"], other["input"])
    bad = ROWS.copy()
    bad[40] = np.nan
    np.save("bad.npy", bad)
    chosen = np.random.default_rng(3).choice(64, 10, replace=False)
    assert 40 not in chosen, "or it is to be refused"
    calibration_batches(net, "bad.npy", samples=10, batch_size=4, seed=3)
    with pytest.raises(InputError, match="not finite"):
        calibration_batches(net, "bad.npy", samples=None, batch_size=4, seed=3)


def test_a_large_npy_file_is_not_read_whole_by_verify_and_benchmark_either(net, folder, monkeypatch):
    onnx.save(net, "net.onnx")
    other = onnx.ModelProto.FromString(net.SerializeToString())
    last = next(tensor for tensor in other.graph.initializer if tensor.name == "v")
    last.CopyFrom(onnx.numpy_helper.from_array(-onnx.numpy_helper.to_array(last), "v"))
    onnx.save(other, "other.onnx")

    def results():
        verified = vsfix.verify("other.onnx", "net.onnx", "rows64.npy", batch_size=16)
        return verified, vsfix.benchmark("net.onnx", "rows64.npy", batch_size=16, batches=(1,), seconds=0.05)

    held = results()
    monkeypatch.setattr(loading, "DEFAULT_MAX_MEMORY", 0)
    asked, read = [], LazyBatch.__getitem__
    monkeypatch.setattr(LazyBatch, "__getitem__", lambda batch, name: asked.append(batch.samples) or read(batch, name))
    found = results()
    assert 0 < max(asked) <= 16
    assert found[0].results == held[0].results
    assert found[1].digest == held[1].digest


def test_an_npy_file_of_one_number_is_refused_in_one_line(net, folder):
    np.save("one.npy", np.array(3.0))
    with pytest.raises(InputError, match=r"has the shape \(\), which holds no sample"):
        calibration_batches(net, "one.npy", samples=None, batch_size=4, seed=3)


def test_a_function_that_never_ends_is_read_no_further_than_wanted(net, folder):
    assert vsfix.inspect(net, "rows_of_mine:endless", samples=48).samples == 48


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ("rows_of_mine:nothing", "can't be imported .*write package.module:function"),
        ("no_such_module:batches", "can't be imported"),
        ("rows_of_mine:CODE", "can't be imported"),
        ("rows_of_mine:np.pi", "is a float; name a function"),
        ("rows_of_mine:failing", "fails when called without arguments .KeyError"),
        ("rows_of_mine:text", "gives a str; it must give arrays"),
        ("mnist", "'mnist': unknown; known are digits.*FILE.npy.*package.module:function"),
        ("gone.npy", "no such file"),
        ("rows.npy:label=a", "unknown"),
    ],
)
def test_data_that_can_not_be_had_is_one_line_with_what_to_write(net, folder, data, words):
    for read in (vsfix.inspect, vsfix.optimize):
        with pytest.raises(InputError, match=words):
            read(net, data)


def test_an_npy_file_for_several_inputs_is_told_of_npz_and_that_works(folder):
    inputs = [ModelInput("image", np.dtype(np.float32), (6,)), ModelInput("row", np.dtype(np.float32), (6,))]
    options = {**ONE_INPUT, "input_names": ["image", "row"], "inputs": inputs}
    with pytest.raises(InputError, match=r"give an .npz file: numpy.savez\('rows.npz', image=..., row=...\)"):
        load_samples("rows.npy", **options)
    np.savez("both.npz", image=ROWS, row=ROWS)
    assert len(load_samples("both.npz", **options)) == 64


def test_labels_that_are_wanted_and_missing_are_asked_for_where_they_go(net, folder):
    for data, words in (("rows.npy", "beside the inputs into an .npz file"), (ROWS, "has no array 'labels'")):
        with pytest.raises(InputError, match=words):
            labelled_samples(net, data, split="test", seed=0)


GRAY = [ModelInput("input", np.dtype(np.float32), (1, 8, 8))]
SAID = Normalization((0.3,), (0.37,))


def test_a_named_set_for_a_file_that_says_nothing_is_normalised_as_a_person_says():
    with pytest.raises(InputError, match=r"--mean and --std .*or give an \.npz file"):
        load_samples("digits", **ONE_INPUT, inputs=GRAY)
    found = load_samples(GivenData("digits", SAID), **ONE_INPUT, inputs=GRAY)
    expected = ((load_dataset("digits", "test").images / 255 - 0.3) / 0.37).transpose(0, 3, 1, 2)
    np.testing.assert_allclose(found.inputs["input"], expected, rtol=0, atol=1e-6)


def test_images_of_a_folder_come_in_the_size_of_the_model_or_in_the_one_that_is_said(tmp_path):
    rng = np.random.default_rng(0)
    for part in ("train", "val"):
        (tmp_path / part / "cat").mkdir(parents=True)
        Image.fromarray(rng.integers(0, 256, (40, 30, 3), dtype=np.uint8)).save(tmp_path / part / "cat" / "1.png")
    spec = f"imagefolder:{tmp_path}"

    def shape(sides, size=None, mean=(0.5,)):
        inputs = [ModelInput("input", np.dtype(np.float32), sides)]
        given = GivenData(spec, Normalization(mean, (0.5,), size))
        return load_samples(given, **ONE_INPUT, inputs=inputs).inputs["input"].shape

    assert shape((3, 16, 20)) == (1, 3, 16, 20)
    assert shape((16, 20, 3)) == (1, 16, 20, 3)
    assert shape((3, 0, 0), (12, 14), (0.1, 0.2, 0.3)) == (1, 3, 12, 14)
    with pytest.raises(InputError, match="say that of the training, as --size 224x224"):
        shape((3, 0, 0))
    with pytest.raises(InputError, match="samples of 3x16x20, the model takes 1x16x20"):
        shape((1, 16, 20))


def test_the_options_of_images_are_those_of_every_command(call, onnx_path, tmp_path):
    """A file without its metadata, told what these say, is fed what it is fed with them."""
    model, foreign = onnx.load(onnx_path), tmp_path / "foreign.onnx"
    stated = read_preprocessing(model)
    del model.metadata_props[:]
    onnx.save(model, foreign)
    mean, std = (",".join(map(repr, values)) for values in (stated.mean, stated.std))
    timed = ("--repair", "none", "--seconds", 0, "--samples", 100, "--data", "digits", "--json", "-")
    told = call("benchmark", foreign, *timed, "--mean", mean, "--std", std)
    assert json.loads(told.stdout)["digest"] == json.loads(call("benchmark", onnx_path, *timed).stdout)["digest"]
    for command in (
        ("verify", foreign, "--against", foreign, "--data", "digits", "--samples", 20),
        ("inspect", foreign, "--data", "digits", "--samples", 64),
        ("optimize", foreign, "--dry-run", "--method", "none", "--eval-data", "digits"),
    ):
        refused = call(*command)
        assert (refused.exit_code, "--mean" in refused.stderr) == (2, True)
        done = call(*command, "--mean", mean, "--std", std)
        assert done.exit_code == 0, done.output
