"""`vsfix inspect` and `vsfix optimize` as a user types them, with good input and bad."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import onnx
import onnx.helper
import pytest

from vsfix.arguments import parse_size
from vsfix.graph_passes.io import external_data, file_values
from vsfix.graph_passes.io.model_file import read_model


@pytest.fixture
def network(onnx_path, tmp_path) -> Path:
    return Path(shutil.copy(onnx_path, tmp_path / "network.onnx"))


def test_inspect_lists_the_noise_and_writes_nothing(call, network):
    before = sorted(network.parent.iterdir())
    result = call("inspect", network, "--data", "digits", "--samples", 64)
    assert result.exit_code == 0, result.stderr
    assert "layers.0.bn" in result.stdout
    assert "dropout:0.5" in result.stdout
    assert sorted(network.parent.iterdir()) == before


def test_inspect_gives_json_alone_on_stdout(call, network):
    result = call("inspect", network, "--json", "-")
    document = json.loads(result.stdout)
    assert document["schema_version"] == 1
    assert [row["distance"] for row in document["rows"]] == ["direct", "direct"]
    assert document["rows"][0]["measured_shift"] is None


def test_optimize_writes_what_was_asked_for_and_leaves_the_input(call, network, tmp_path):
    original = network.read_bytes()
    outputs = {name: tmp_path / f"out.{name}" for name in ("onnx", "npz", "html", "json")}
    result = call(
        *("optimize", network, "-o", outputs["onnx"], "--data", "digits", "--samples", 32, "--method", "match"),
        *("--statistics", outputs["npz"], "--html", outputs["html"], "--json", outputs["json"]),
    )
    assert result.exit_code == 0, result.stderr
    assert network.read_bytes() == original
    assert {node.op_type for node in read_model(outputs["onnx"]).graph.node}.isdisjoint({"Dropout", "Identity"})
    kinds = ("weight", "bias", "running_mean", "running_var")
    assert set(np.load(outputs["npz"])) == {
        *(f"layers.{i}.bn.{kind}" for i in (0, 1) for kind in kinds),
        *("layers.1.linear.weight", "layers.1.linear.bias", "classifier.bias"),
    }
    document = json.loads(outputs["json"].read_text())
    assert document["method"] == "match+refine"
    assert document["severity_after"]["ratio"] < 0.2 < document["severity_before"]["ratio"]
    assert [row["name"] for row in document["candidates"]] == ["as trained", "match", "match+refine"]
    assert "</html>" in outputs["html"].read_text()
    assert "PASS Repaired 2 of 2 BatchNorms (match+refine, 32 samples of the data)" in result.stdout


def test_where_the_model_can_not_be_written_its_companions_stay_the_old_ones(call, network, tmp_path, monkeypatch):
    outputs = {name: tmp_path / f"out.{name}" for name in ("onnx", "npz", "html")}
    command = (
        *("optimize", network, "-o", outputs["onnx"], "--data", "digits", "--force"),
        *("--statistics", outputs["npz"], "--html", outputs["html"], "--samples"),
    )
    assert call(*command, 32).exit_code == 0
    before = {path: path.read_bytes() for path in outputs.values()}

    def run_full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("vsfix.graph_passes.io.model_file.save_unchecked", run_full)
    result = call(*command, 64)
    assert (result.exit_code, "No space left" in result.stderr) == (2, True)
    assert {path: path.read_bytes() for path in outputs.values()} == before
    assert sorted(tmp_path.iterdir()) == sorted([network, *before])


def test_the_method_none_folds_and_changes_no_number(call, network, checkpoint_path, tmp_path):
    result = call("optimize", network, "-o", tmp_path / "out.onnx", "--method", "none")
    assert result.exit_code == 0, result.stderr
    assert "PASS Nothing repaired: the parameters are kept, as was asked for; 2 of 2 folded." in result.stdout
    assert {node.op_type for node in read_model(tmp_path / "out.onnx").graph.node}.isdisjoint(
        {"Dropout", "BatchNormalization"}
    )
    against = ("--against", checkpoint_path, "--data", "digits", "--min-snr", 100)
    assert call("verify", tmp_path / "out.onnx", *against).exit_code == 0


def test_optimize_and_verify_agree_with_torch(call, network, checkpoint_path, tmp_path):
    output, statistics = tmp_path / "out.onnx", tmp_path / "s.npz"
    asked = ("--data", "digits", "--samples", 64, "--method", "match")
    call("optimize", network, "-o", output, *asked, "--statistics", statistics)
    against = ("--against", checkpoint_path, "--data", "digits", "--min-snr", 100)
    assert call("verify", output, *against, "--statistics", statistics).exit_code == 0
    assert call("verify", output, *against).exit_code == 1, "other statistics must be seen"


def test_a_dry_run_writes_nothing(call, network):
    before = sorted(network.parent.iterdir())
    result = call("optimize", network, "--data", "digits", "--samples", 32, "--dry-run")
    assert result.exit_code == 0, result.stderr
    assert sorted(network.parent.iterdir()) == before


def test_a_repair_that_loses_accuracy_is_refused_and_the_page_says_why(call, network, tmp_path):
    """Labels that are the answers of the unrepaired network: every flip is a loss."""
    from vsfix.pipeline.backends.onnxruntime_runner import OnnxRuntimeRunner

    x = np.random.default_rng(0).normal(0, 1, (400, 1, 8, 8)).astype(np.float32)
    with OnnxRuntimeRunner(network) as runner:
        labels = runner.run({"input": x})["logits"].argmax(axis=1)
    np.savez(tmp_path / "labelled.npz", input=x, labels=labels)
    before = set(tmp_path.iterdir())
    outputs = ("-o", tmp_path / "out.onnx", "--statistics", tmp_path / "out.npz", "--html", tmp_path / "out.html")
    result = call(
        *("optimize", network, *outputs, "--data", "digits", "--samples", 32, "--method", "exact"),
        *("--eval-data", tmp_path / "labelled.npz"),
    )
    assert result.exit_code == 1
    assert "refused" in result.stderr
    assert set(tmp_path.iterdir()) - before == {tmp_path / "out.html"}
    page = (tmp_path / "out.html").read_text()
    assert "<strong>FAIL</strong> <span>Refused: on " in page
    assert "100.0 %" in page


def make_input(tmp_path: Path, kind: str) -> str:
    """A data file that is bad in one way."""
    arrays = {
        "wrong-shape": {"input": np.ones((32, 3, 8, 8), np.float32)},
        "nan": {
            "input": np.where(np.arange(32)[:, None, None, None] == 5, np.nan, 1).astype(np.float32)
            * np.ones((32, 1, 8, 8), np.float32)
        },
        "empty": {"input": np.ones((0, 1, 8, 8), np.float32)},
        "other-name": {"image": np.ones((32, 1, 8, 8), np.float32)},
        "few": {"input": np.random.default_rng(0).normal(size=(1, 1, 8, 8)).astype(np.float32)},
    }[kind]
    path = tmp_path / f"{kind}.npz"
    np.savez(path, **arrays)
    return str(path)


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("wrong-shape", "samples of 3x8x8, the model takes 1x8x8"),
        ("nan", "sample 5"),
        ("empty", "no sample"),
        ("other-name", "'input'"),
        ("few", "nothing can be told from fewer than 2; give at least 8"),
    ],
)
def test_bad_data_is_one_line_and_leaves_nothing(call, network, tmp_path, kind, said):
    data = make_input(tmp_path, kind)
    before = sorted(tmp_path.iterdir())
    result = call("optimize", network, "-o", tmp_path / "out.onnx", "--data", data)
    assert result.exit_code == 2
    assert said in result.stderr
    assert result.stderr.startswith("vsfix: error: ")
    assert len(result.stderr.splitlines()) == 1
    assert sorted(tmp_path.iterdir()) == before


def make_model(network: Path, kind: str) -> Path:
    """A model that is bad in one way, in the place of the network."""
    if kind == "missing":
        network.unlink()
    elif kind == "garbage":
        network.write_bytes(b"this is no model" * 100)
    elif kind == "truncated":
        network.write_bytes(network.read_bytes()[:-500])
    elif kind == "empty":
        network.write_bytes(b"")
    elif kind == "folder":
        network.unlink()
        network.mkdir()
    elif kind in ("folded", "never"):
        op = "Gemm" if kind == "folded" else "Relu"
        value = onnx.helper.make_tensor_value_info
        names = ["input", "w"] if kind == "folded" else ["input"]
        graph = onnx.helper.make_graph(
            [onnx.helper.make_node(op, names, ["logits"])],
            "g",
            [value("input", 1, ["N", 4])],
            [value("logits", 1, ["N", 4])],
            [onnx.numpy_helper.from_array(np.eye(4, dtype=np.float32), "w")] if kind == "folded" else [],
        )
        onnx.save(
            onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=8), network
        )
    return network


@pytest.mark.parametrize("command", ["inspect", "optimize"])
@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("missing", "no such file"),
        ("garbage", "not an ONNX file"),
        ("truncated", "not an ONNX file"),
        ("empty", "not an ONNX file"),
        ("folder", "is a folder"),
        ("folded", "folded into the upstream layers; export it again with `vsfix export`"),
        ("never", "never had any"),
    ],
)
def test_a_bad_model_is_one_line_and_leaves_nothing(call, network, tmp_path, command, kind, said):
    np.savez(tmp_path / "data.npz", input=np.random.default_rng(0).normal(size=(32, 4)).astype(np.float32))
    model = make_model(network, kind)
    before = sorted(tmp_path.iterdir())
    output = ["-o", tmp_path / "out.onnx"] if command == "optimize" else []
    result = call(command, model, *output, "--data", tmp_path / "data.npz")
    assert result.exit_code == 2
    assert said in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert sorted(tmp_path.iterdir()) == before


def test_an_existing_output_is_kept_without_force_and_replaced_with_it(call, network, tmp_path):
    output = tmp_path / "out.onnx"
    output.write_bytes(b"precious")
    arguments = ("optimize", network, "-o", output, "--data", "digits", "--samples", 32)
    result = call(*arguments)
    assert result.exit_code == 2
    assert "--force" in result.stderr
    assert output.read_bytes() == b"precious"
    assert call(*arguments, "--force").exit_code == 0
    read_model(output)


@pytest.mark.parametrize("option", ["-o", "--json", "--html", "--statistics"])
def test_the_input_is_never_an_output(call, network, option, tmp_path):
    original = network.read_bytes()
    output = [] if option == "-o" else ["-o", tmp_path / "out.onnx"]
    result = call("optimize", network, *output, option, network, "--data", "digits", "--samples", 32, "--force")
    assert result.exit_code == 2
    assert "input" in result.stderr
    assert network.read_bytes() == original


@pytest.mark.parametrize("option", ["-o", "--json", "--html", "--statistics"])
def test_the_data_is_never_an_output(call, network, npz_path, option, tmp_path):
    original = npz_path.read_bytes()
    output = [] if option == "-o" else ["-o", tmp_path / "out.onnx"]
    result = call("optimize", network, *output, option, npz_path, "--data", npz_path, "--force")
    assert result.exit_code == 2
    assert "input" in result.stderr
    assert npz_path.read_bytes() == original
    assert not (tmp_path / "out.onnx").exists()


def test_two_outputs_of_one_name_are_refused_before_any_work(call, network, tmp_path):
    out = tmp_path / "out"
    result = call("optimize", network, "-o", out, "--html", out, "--data", "digits")
    assert result.exit_code == 2
    assert not out.exists()


@pytest.mark.parametrize("scale", [0.001, 1000])
def test_data_on_another_scale_is_refused_and_nothing_is_written(call, network, tmp_path, scale):
    x = scale * np.random.default_rng(0).normal(size=(64, 1, 8, 8)).astype(np.float32)
    np.savez(tmp_path / "x.npz", input=x)
    result = call("optimize", network, "-o", tmp_path / "out.onnx", "--data", tmp_path / "x.npz")
    assert result.exit_code == 1
    assert "refused: " in result.stderr
    assert "preprocessed" in result.stderr
    assert not (tmp_path / "out.onnx").exists()


def test_labels_of_other_classes_are_refused(call, network, tmp_path):
    x = np.random.default_rng(0).normal(size=(20, 1, 8, 8)).astype(np.float32)
    np.savez(tmp_path / "l.npz", input=x, labels=np.full(20, 100))
    result = call("optimize", network, "--dry-run", "--data", "digits", "--eval-data", tmp_path / "l.npz")
    assert result.exit_code == 2
    assert "label 100 names none of the 10 classes" in result.stderr


def test_an_output_is_needed_unless_it_is_a_dry_run(call, network):
    result = call("optimize", network, "--data", "digits")
    assert result.exit_code == 2
    assert "-o" in result.stderr


@pytest.mark.parametrize(("text", "size"), [("512M", 512 << 20), ("2G", 2 << 30), ("1.5k", 1536), ("100", 100)])
def test_sizes_are_read(text, size):
    assert parse_size(text, "--max-memory") == size


@pytest.mark.parametrize("text", ["", "M", "-1G", "nan", "inf", "12Q"])
def test_sizes_that_mean_nothing_are_refused(call, network, text):
    result = call("optimize", network, "--dry-run", "--data", "digits", "--max-memory", text)
    assert result.exit_code == 2
    assert "--max-memory" in result.stderr


def test_a_file_whose_batch_norms_vsfix_folded_can_still_be_cast(call, onnx_path, tmp_path):
    whole, bare, half = (tmp_path / name for name in ("w.onnx", "bare.onnx", "half.onnx"))
    assert call("optimize", onnx_path, "-o", whole, "--data", "digits", "--samples", 32).exit_code == 0
    assert "BatchNormalization" not in [node.op_type for node in onnx.load(whole).graph.node]
    result = call("optimize", whole, "-o", half, "--precision", "fp16")
    assert result.exit_code == 0, result.output
    assert "Nothing repaired: no BatchNorm is left, and the file needed no repair when vsfix folded it" in result.stdout
    assert {tensor.data_type for tensor in onnx.load(half).graph.initializer} >= {onnx.TensorProto.FLOAT16}
    again = call("optimize", half, "-o", tmp_path / "again.onnx")
    assert (again.exit_code, "take the float32 file" in again.stderr) == (2, True)
    model = onnx.load(whole)
    onnx.helper.set_model_props(model, {})
    onnx.save(model, bare)
    result = call("optimize", bare, "-o", tmp_path / "no.onnx", "--precision", "fp16")
    assert (result.exit_code, "the model has no BatchNormalization" in result.stderr) == (2, True)
    assert call("optimize", bare, "-o", tmp_path / "n.onnx", "--method", "none", "--precision", "fp16").exit_code == 0


def test_tf32_is_float32_in_the_file_and_that_is_said(call, onnx_path, tmp_path):
    found = tmp_path / "t.onnx"
    result = call("optimize", onnx_path, "-o", found, "--data", "digits", "--samples", 32, "--precision", "tf32")
    assert result.exit_code == 0, result.output
    assert (
        "WARN tf32 is no type of a file: it holds float32; build it with `vsfix build --precision tf32`"
        in result.stdout
    )
    types = {tensor.data_type for tensor in onnx.load(found).graph.initializer}
    assert types <= {onnx.TensorProto.FLOAT, onnx.TensorProto.INT64}


@pytest.mark.parametrize("fold", ["--fold", "--no-fold"])
def test_a_model_whose_weights_stay_in_a_file_is_repaired_to_the_same_numbers(
    call, network, tmp_path, monkeypatch, fold
):
    arguments = ("--data", "digits", "--samples", "32", fold)
    plain, apart = tmp_path / "plain.onnx", tmp_path / "apart" / "repaired.onnx"
    assert call("optimize", network, "-o", plain, *arguments).exit_code == 0
    apart.parent.mkdir()
    monkeypatch.setattr(external_data, "MAX_SINGLE_FILE_WEIGHTS", 10_000)
    monkeypatch.setattr(file_values, "LARGE", 2_000)
    external_data.save_with_external_data(onnx.load(network), tmp_path / "apart" / "net.onnx")
    before = digest_of(apart.parent)
    result = call("optimize", tmp_path / "apart" / "net.onnx", "-o", apart, *arguments)
    assert result.exit_code == 0, result.output
    assert {name: digest for name, digest in digest_of(apart.parent).items() if name in before} == before
    expected, found = (
        {t.name: onnx.numpy_helper.to_array(t) for t in onnx.load(f).graph.initializer} for f in (plain, apart)
    )
    assert expected.keys() == found.keys()
    for name, values in expected.items():
        # The runtime multiplies by weights that it has not laid out anew, which rounds in another order.
        np.testing.assert_allclose(found[name], values, rtol=1e-5, atol=1e-5 * np.abs(values).max(), err_msg=name)


def digest_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_method_that_is_gone_is_one_line_that_says_what_took_its_place(call, network, tmp_path):
    result = call("optimize", network, "-o", tmp_path / "o.onnx", "--method", "distill")
    assert (result.exit_code, (tmp_path / "o.onnx").exists()) == (2, False)
    assert "method 'distill': it is no method any more: without --data the inputs are made" in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_what_an_output_means_can_be_said(call, network):
    arguments = ("optimize", network, "--dry-run", "--data", "digits", "--samples", 32)
    assert "output logits: values (as was said)" in call(*arguments, "--output-kind", "logits=values").stdout
    assert "output logits: classes" in call(*arguments).stdout
    wrong = call(*arguments, "--output-kind", "logits=magic")
    assert (wrong.exit_code, "none of classes, probabilities, directions, values" in wrong.stderr) == (2, True)
    nameless = call(*arguments, "--output-kind", "classes")
    assert (nameless.exit_code, "write NAME=classes" in nameless.stderr) == (2, True)


@pytest.mark.long
@pytest.mark.parametrize(("option", "candidates"), [("--refine", 3), ("--no-refine", 2)])
def test_the_refinement_is_tried_where_it_is_asked_for(call, network, tmp_path, option, candidates):
    arguments = ("--data", "digits", "--samples", 256, "--method", "match", option, "--json", tmp_path / "o.json")
    assert call("optimize", network, "-o", tmp_path / "o.onnx", *arguments).exit_code == 0
    document = json.loads((tmp_path / "o.json").read_text())
    assert len(document["candidates"]) == candidates
    assert document["method"] == {2: "match", 3: "match+refine"}[candidates]


def test_a_healthy_file_passes_with_its_r_and_nothing_is_repaired(call, network, tmp_path):
    result = call("optimize", network, "-o", tmp_path / "o.onnx", "--data", "digits", "--samples", 32)
    assert result.exit_code == 0
    assert "PASS Nothing repaired: R = 0.3" in result.stdout


def test_without_tensorrt_nothing_is_said_of_its_parser(call, network, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)  # as if it were not installed
    result = call("optimize", network, "-o", tmp_path / "o.onnx", "--method", "none")
    assert result.exit_code == 0, result.stderr
    assert "parser" not in result.stdout
    document = json.loads(call("optimize", network, "--dry-run", "--method", "none", "--json", "-").stdout)
    assert document["tensorrt_parser"] is None
