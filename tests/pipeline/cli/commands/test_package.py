"""`vsfix package` as a user types it; the configuration is read by Triton's own message."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from tests.pipeline.building.two_norm_network import build_network, network_weights, write_network
from tests.pipeline.serving.model_config import parse_config
from vsfix.graph_passes.batch_norm.batch_norm import find_batch_norms
from vsfix.graph_passes.io.model_file import import_graph, read_model
from vsfix.pipeline.serving import packaging


@pytest.fixture
def network(onnx_path, tmp_path) -> Path:
    """The perceptron for the digits, with its class names."""
    return Path(shutil.copy(onnx_path, tmp_path / "network.onnx"))


@pytest.fixture
def engine(install_tensorrt, parse, tmp_path, monkeypatch) -> Path:
    install_tensorrt("11")
    monkeypatch.setattr("vsfix.pipeline.building.building.visible_capability", lambda: "sm89")
    build_network(write_network(parse, tmp_path / "m.onnx", network_weights()), tmp_path / "e.plan")
    return tmp_path / "e.plan"


def contents(folder) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def config_of(folder):
    return parse_config((folder / "config.pbtxt").read_text(encoding="utf-8"))


def refused(result, code=2) -> str:
    assert (result.exit_code, result.stdout) == (code, ""), result.output
    (line,) = result.stderr.splitlines()
    return line


def test_an_onnx_file_becomes_a_model_that_triton_reads(call, network, tmp_path):
    result = call("package", network, "-o", tmp_path / "repo")
    assert (result.exit_code, result.stderr) == (0, ""), result.output
    folder = tmp_path / "repo" / "network"
    assert set(contents(folder)) == {"config.pbtxt", "labels.txt", "1/model.onnx", "1/vsfix.json"}
    assert f"wrote {folder / '1/model.onnx'}\n" in result.stdout
    assert "backend: onnxruntime, batches up to 64\n" in result.stdout
    found = config_of(folder)
    assert (found.name, found.backend, found.max_batch_size) == ("network", "onnxruntime", 64)
    session = onnxruntime.InferenceSession(folder / "1" / "model.onnx", providers=["CPUExecutionProvider"])
    assert [(t.name, list(t.dims)) for t in found.input] == [(t.name, t.shape[1:]) for t in session.get_inputs()]
    assert [(t.name, list(t.dims)) for t in found.output] == [(t.name, t.shape[1:]) for t in session.get_outputs()]


def test_the_class_names_stand_in_a_file_that_the_output_names(call, network, tmp_path):
    call("package", network, "-o", tmp_path / "repo")
    folder = tmp_path / "repo" / "network"
    assert config_of(folder).output[0].label_filename == "labels.txt"
    assert (folder / "labels.txt").read_text().splitlines() == list("0123456789")


def test_the_provenance_says_what_is_known_of_the_file(call, network, tmp_path):
    call("package", network, "-o", tmp_path / "repo", "--version", 3, "--name", "digits")
    provenance = json.loads((tmp_path / "repo" / "digits" / "3" / "vsfix.json").read_text())
    known = provenance["files"]["model.onnx"]
    assert known["model"]["sha256"] == hashlib.sha256(network.read_bytes()).hexdigest()
    assert "vsfix.preprocessing" in known["metadata"]
    assert "onnx" in provenance["environment"]


def test_weights_in_files_of_their_own_come_along(call, parse, tmp_path):
    proto = parse("(float[N, 4] x) => (float[N, 4] y) { y = MatMul (x, w) }", {"w": np.eye(4, dtype=np.float32)})
    (tmp_path / "source").mkdir()
    path = tmp_path / "source" / "m.onnx"
    onnx.save(proto, path, save_as_external_data=True, location="m.weights", size_threshold=0)
    assert call("package", path, "-o", tmp_path / "repo").exit_code == 0
    folder = tmp_path / "repo" / "m" / "1"
    assert (folder / "m.weights").read_bytes() == (path.parent / "m.weights").read_bytes()
    onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])


def test_weights_under_a_name_that_the_repository_needs_are_refused(call, parse, tmp_path):
    proto = parse("(float[N, 4] x) => (float[N, 4] y) { y = MatMul (x, w) }", {"w": np.eye(4, dtype=np.float32)})
    onnx.save(proto, tmp_path / "m.onnx", save_as_external_data=True, location="vsfix.json", size_threshold=0)
    line = refused(call("package", tmp_path / "m.onnx", "-o", tmp_path / "repo"))
    assert "its weights stand in 'vsfix.json', a name that the repository needs" in line


def test_an_engine_is_packed_for_its_gpu_alone_with_its_sidecar(call, engine, tmp_path):
    result = call("package", engine, "-o", tmp_path / "repo", "--name", "net")
    assert result.exit_code == 0, result.output
    folder = tmp_path / "repo" / "net"
    assert set(contents(folder)) == {"config.pbtxt", "1/model.plan.sm89", "1/vsfix.json"}
    found = config_of(folder)
    assert (found.backend, found.max_batch_size, found.instance_group[0].kind) == ("tensorrt", 4, 1)
    assert dict(found.cc_model_filenames) == {"8.9": "model.plan.sm89"}
    provenance = json.loads((folder / "1" / "vsfix.json").read_text())
    assert provenance["files"]["model.plan.sm89"] == json.loads(engine.with_name("e.plan.json").read_text())
    assert (folder / "1" / "model.plan.sm89").read_bytes() == engine.read_bytes()


def test_an_engine_that_is_not_that_of_its_sidecar_ends_with_4_and_leaves_nothing(call, engine, tmp_path):
    engine.write_bytes(engine.read_bytes() + b" ")
    assert "is not the plan that e.plan.json describes" in refused(call("package", engine, "-o", tmp_path / "repo"), 4)
    assert not (tmp_path / "repo").exists()


def test_what_was_asked_for_stands_in_the_configuration(call, network, tmp_path):
    options = "--max-batch-size 32 --max-queue-delay 200 --device cpu"
    assert call("package", network, "-o", tmp_path / "repo", *options.split()).exit_code == 0
    found = config_of(tmp_path / "repo" / "network")
    assert (found.max_batch_size, found.instance_group[0].kind) == (32, 2)
    assert found.dynamic_batching.max_queue_delay_microseconds == 200
    assert [request.batch_size for request in found.model_warmup] == [1, 32]


BAD = {
    "batch too large": (("--max-batch-size", 5), "the model takes a batch of 4 at most; pass --max-batch-size 4"),
    "nothing to batch": (("--max-batch-size", 0, "--max-queue-delay", 9), "there is nothing to batch"),
    "an engine on a CPU": (("--device", "cpu"), "an engine runs on a GPU"),
    "a name with a slash": (("--name", "a/b"), "make the name of a model"),
    "a long name": (("--name", "n" * 256), "make the name of a model"),
    "no name": (("--name", ""), "make the name of a model"),
    "no URI": (("--kserve", "s.yaml"), "--kserve and --storage-uri go together"),
    "no service": (("--storage-uri", "s3://b"), "--kserve and --storage-uri go together"),
    "no right URI": (("--kserve", "s.yaml", "--storage-uri", "b"), "name the folder of the repository as s3://"),
    "another GPU": (("--compute-capability", "9.0"), "was built on a GPU of 8.9, not 9.0"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_and_leaves_nothing(call, engine, tmp_path, monkeypatch, case):
    monkeypatch.chdir(tmp_path)
    arguments, words = BAD[case]
    before = contents(tmp_path)
    assert words in refused(call("package", engine, "-o", tmp_path / "repo", *arguments))
    assert contents(tmp_path) == before
    assert not (tmp_path / "repo").exists()


def test_an_existing_model_stays_without_force_and_is_replaced_whole_with_it(call, network, tmp_path):
    repository = tmp_path / "repo"
    call("package", network, "-o", repository, "--version", 1)
    call("package", network, "-o", repository, "--name", "other")
    before = contents(repository)
    assert "exists already; pass --force" in refused(call("package", network, "-o", repository, "--version", 2))
    assert contents(repository) == before
    assert call("package", network, "-o", repository, "--version", 2, "--force").exit_code == 0
    assert {name.split("/")[1] for name in contents(repository) if name.startswith("network/")} == {
        *("config.pbtxt", "labels.txt", "2")
    }
    assert (repository / "other" / "1" / "model.onnx").exists()


def test_force_never_deletes_a_folder_that_is_no_model(call, network, tmp_path):
    (tmp_path / "network").mkdir()
    (tmp_path / "network" / "thesis.tex").write_text("mine")
    line = refused(call("package", network, "-o", tmp_path, "--force"))
    assert "is no model of a Triton repository, and is not replaced" in line
    assert (tmp_path / "network" / "thesis.tex").read_text() == "mine"


def test_a_model_in_the_repository_is_not_packaged_over_itself(call, network, tmp_path):
    call("package", network, "-o", tmp_path / "repo")
    inside = tmp_path / "repo" / "network" / "1" / "model.onnx"
    line = refused(call("package", inside, "-o", tmp_path / "repo", "--name", "network", "--force"))
    assert "is an input; the input is never written" in line


def test_the_folder_around_the_repository_must_be_there(call, network, tmp_path):
    assert "does not exist; create it first" in refused(call("package", network, "-o", tmp_path / "no" / "repo"))
    (tmp_path / "file").write_text("mine")
    assert "is a file; name the folder" in refused(call("package", network, "-o", tmp_path / "file"))


def test_a_repository_beside_which_nothing_can_be_written_is_filled_from_within(call, network, tmp_path, monkeypatch):
    (tmp_path / "repo").mkdir()
    monkeypatch.setattr("os.access", lambda path, mode: Path(path) != tmp_path)
    seen = []
    monkeypatch.setattr(packaging, "atomic_folder", watched(packaging.atomic_folder, seen))
    assert call("package", network, "-o", tmp_path / "repo").exit_code == 0
    assert seen == [tmp_path / "repo"]
    assert [path.name for path in (tmp_path / "repo").iterdir()] == ["network"]


def watched(made, seen):
    """A temporary folder that notes where it was made."""

    def make(path, *, scratch, **arguments):
        seen.append(scratch)
        return made(path, scratch=scratch, **arguments)

    return make


def test_a_service_of_kserve_is_written_beside(call, network, tmp_path):
    yaml = pytest.importorskip("yaml", reason="PyYAML is not installed; run: pip install 'vsfix[test]'")
    service = tmp_path / "service.yaml"
    arguments = ("package", network, "-o", tmp_path / "repo", "--kserve", service, "--storage-uri", "s3://b/repo")
    assert call(*arguments, "--device", "gpu").exit_code == 0
    found = yaml.safe_load(service.read_text())
    assert found["spec"]["predictor"]["model"]["storageUri"] == "s3://b/repo"
    assert found["spec"]["predictor"]["model"]["resources"]["limits"] == {"nvidia.com/gpu": "1"}
    shutil.rmtree(tmp_path / "repo")
    assert "service.yaml: exists already" in refused(call(*arguments))
    assert not (tmp_path / "repo").exists()


def test_json_on_stdout_is_alone_there(call, network, tmp_path):
    document = json.loads(call("package", network, "-o", tmp_path / "repo", "--json", "-").stdout)
    assert (document["backend"], document["max_batch_size"]) == ("onnxruntime", 64)
    assert document["files"] == ["1/model.onnx", "1/vsfix.json", "config.pbtxt", "labels.txt"]


def test_what_is_left_out_is_said(call, parse, tmp_path):
    onnx.save(parse("(float[N, 3, H, W] x) => (float[N, 3, H, W] y) { y = Relu (x) }", {}), tmp_path / "m.onnx")
    result = call("package", tmp_path / "m.onnx", "-o", tmp_path / "repo")
    assert "SKIP warm-up: an input has sides that the file does not fix" in result.stdout
    assert len(config_of(tmp_path / "repo" / "m").model_warmup) == 0


def test_a_file_that_shows_its_noise_and_was_not_repaired_is_packaged_with_a_warning(call, onnx_path, tmp_path):
    damaged = call("package", onnx_path, "-o", tmp_path / "repo")
    assert damaged.exit_code == 0
    first = find_batch_norms(import_graph(read_model(onnx_path)))[0].name  # the same one each time
    assert (
        f"WARN the file was not repaired, and the noise of its training reaches BatchNorm '{first}' and 1 other:"
        in damaged.stdout
    )
    call("optimize", onnx_path, "-o", tmp_path / "repaired.onnx", "--data", "digits", "--samples", 32, "--no-fold")
    assert "WARN" not in call("package", tmp_path / "repaired.onnx", "-o", tmp_path / "repo").stdout
