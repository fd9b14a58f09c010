"""Models, data and results of `import vsfix`; what the functions compute is tested in their rooms."""

from __future__ import annotations

import json
import re
from importlib.util import find_spec
from itertools import count
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn

import vsfix
from tests.graph_passes.noise_inference.planted_network import (
    make_images,
    make_model,
    make_weights,
    plant,
    site_tensors,
)
from vsfix.pipeline.benchmark.comparing import compare_files
from vsfix.trainers.data.datasets import load_dataset
from vsfix.trainers.data.preprocessing import Preprocessing
from vsfix.trainers.training.checkpoint import load_checkpoint

needs_rtx = pytest.mark.skipif(
    find_spec("tensorrt_rtx") is None, reason="TensorRT-RTX is not installed; run: pip install 'vsfix[rtx]'"
)
ROOT = Path(__file__).parents[3]
BLOCKS = [block.split("```")[0] for block in (ROOT / "docs" / "api.md").read_text().split("```python\n")[1:]]
ENVELOPE = ["schema_version", "command", "status", "verdict", "warnings"]


@pytest.fixture(scope="session")
def images() -> np.ndarray:
    """Digits as the network takes them, shape (1297, 1, 8, 8)."""
    return Preprocessing(1, (8, 8), (0.3,), (0.37,), tuple("0123456789")).apply(load_dataset("digits", "train").images)


@pytest.fixture(scope="session")
def folder(checkpoint_path, onnx_path, images, tmp_path_factory) -> Path:
    """The files that the page on Python reads: an exported model, and the run that it came from."""
    folder = tmp_path_factory.mktemp("page")
    (folder / "model.onnx").write_bytes(onnx_path.read_bytes())
    (folder / "run").mkdir()
    np.save(folder / "images.npy", images[:64])
    (folder / "run" / "checkpoint.pt").write_bytes(checkpoint_path.read_bytes())
    return folder


@pytest.mark.long
def test_the_examples_of_the_page_run(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    names: dict[str, object] = {}
    assert len(BLOCKS) >= 11
    for block in BLOCKS:
        if "vsfix.build(" not in block or find_spec("tensorrt_rtx"):
            exec(compile(block, block.splitlines()[0], "exec"), names)
    printed = capsys.readouterr().out
    assert "2 model.onnx" not in printed
    assert re.search(
        r"^2 data \(an array\): array 'input' has samples of 8x8, the model takes 1x8x8$", printed, re.MULTILINE
    )
    assert re.search(r"^FAIL Refused: ", printed, re.MULTILINE)
    assert re.search(r"^\[\]$", printed, re.MULTILINE)
    made = {path.name for path in folder.iterdir()}
    assert {
        "repaired.onnx",
        "report.html",
        "statistics.npz",
        "inspection.html",
        "network.onnx",
        "benchmark.json",
    } <= made


@pytest.mark.long
def test_a_file_and_a_model_in_memory_give_the_same(onnx_path, tmp_path):
    results = [
        vsfix.optimize(model, "digits", method="match", samples=32) for model in (str(onnx_path), onnx.load(onnx_path))
    ]
    for number, result in enumerate(results):
        result.save(tmp_path / f"{number}.onnx")
    assert (tmp_path / "0.onnx").read_bytes() == (tmp_path / "1.onnx").read_bytes()
    assert results[0].to_dict() == results[1].to_dict()


def test_the_command_and_the_function_give_the_same_file_document_and_text(call, onnx_path, tmp_path):
    arguments = ("-o", tmp_path / "c.onnx", "--data", "digits", "--samples", 32, "--json", tmp_path / "c.json")
    command = call("optimize", onnx_path, *arguments)
    result = vsfix.optimize(onnx_path, "digits", samples=32)
    result.save(tmp_path / "p.onnx")
    assert (tmp_path / "p.onnx").read_bytes() == (tmp_path / "c.onnx").read_bytes()
    assert json.loads(result.to_json()) == json.loads((tmp_path / "c.json").read_text())
    printed = [line for line in command.stdout.splitlines() if not line.startswith("wrote ")]
    assert str(result).splitlines() == printed


def lost_noise() -> onnx.ModelProto:
    """A network with the statistics of Dropout 0.5 in each block, which its file does not mark."""
    generator = torch.Generator().manual_seed(3)

    def noise(t: torch.Tensor) -> torch.Tensor:
        return t * (torch.rand(t.shape, generator=generator, dtype=t.dtype) >= 0.5) * 2

    return make_model(plant(make_weights(1), make_images(2500, 5), "a", noise))


@pytest.mark.parametrize("is_marked", [False, True])
def test_r_is_the_same_of_an_inspection_and_of_an_optimization(is_marked):
    x = make_images(600, 8)
    data = torch.utils.data.DataLoader(torch.from_numpy(x), 32) if is_marked else x
    options = {"noise": [f"{site}=dropout:0.5" for site in site_tensors("a")] if is_marked else (), "seed": 1}
    found = vsfix.inspect(lost_noise(), data, **options)
    repaired = vsfix.optimize(lost_noise(), data, refine=False, **options)
    assert found.samples == 500
    assert bool(found.inferred) is not is_marked
    assert found.severity.samples == repaired.report.severity.samples == 256
    assert found.severity.ratio == pytest.approx(repaired.report.severity.ratio, rel=1e-6)


def test_an_endless_generator_is_drawn_no_further_than_wanted(onnx_path, images):
    drawn = []

    def endless():
        for number in count():
            drawn.append(number)
            yield images[16 * number % 1200 :][:16]

    assert vsfix.inspect(onnx_path, endless(), samples=40).samples == 40
    assert drawn == [0, 1, 2]
    assert vsfix.optimize(onnx_path, endless(), samples=40).report.samples <= 40
    assert len(drawn) == 6
    assert vsfix.inspect(onnx_path, endless()).samples == 500


@pytest.mark.long
def test_every_result_has_the_envelope(onnx_path, checkpoint_path, images):
    images, labels = images[:64], load_dataset("digits", "train").labels[:64]
    results = [
        vsfix.inspect(onnx_path),
        vsfix.optimize(onnx_path, images, eval_data=(images, labels)),
        vsfix.verify(onnx.load(onnx_path), checkpoint_path, {"input": images, "labels": labels}),
        vsfix.benchmark([onnx_path, onnx.load(onnx_path)], (images, labels), repairs="none", seconds=0),
        vsfix.export(nn.Linear(3, 2), np.zeros((4, 3), np.float32)),
    ]
    for result in results:
        document = json.loads(result.to_json())
        assert list(document)[:5] == ENVELOPE
        assert (document["command"], document["status"], document["verdict"]) == (
            result.command,
            result.status,
            result.verdict,
        )
        assert document["status"] in ("PASS", "WARN")
        assert "\x1b" not in str(result)
        assert str(result).strip()
    assert [row.model for row in results[3].rows] == [str(onnx_path), "model-2.onnx"]


def test_a_refused_command_writes_the_envelope_too(call, onnx_path, tmp_path):
    for command, code, words in (
        (("inspect", onnx_path, "--data", tmp_path / "gone.npz"), 2, "no such file"),
        (("verify", onnx_path, "--against", onnx_path, "--backend", "tensorrt"), 2, "runs an engine"),
        (("compare", onnx_path, onnx_path), 2, "is not JSON"),
    ):
        result = call(*command, "--json", "-")
        document = json.loads(result.stdout)
        assert (result.exit_code, list(document), document["status"]) == (code, ENVELOPE, "FAIL")
        assert document["command"] == command[0]
        assert words in document["verdict"]


def test_a_benchmark_without_the_new_entries_is_read_and_valid_as_before(onnx_path, tmp_path):
    import jsonschema

    found = vsfix.benchmark(onnx_path, "digits", repairs="none", seconds=0, samples=100)
    found.save(tmp_path / "new.json")
    document = json.loads((tmp_path / "new.json").read_text())
    schema = json.loads((ROOT / "pipeline" / "benchmark" / "benchmark.schema.json").read_text())
    jsonschema.validate(document, schema)
    del document["command"], document["warnings"]
    jsonschema.validate(document, schema)
    (tmp_path / "old.json").write_text(json.dumps(document))
    compared = compare_files(tmp_path / "old.json", tmp_path / "new.json", ())
    assert {change.direction for change in compared.changes} == {"same"}


def test_a_state_dict_goes_back_into_the_module(checkpoint_path, onnx_path, images):
    images = images[:32]
    result = vsfix.optimize(onnx_path, "digits", method="match", refine=False)
    module = load_checkpoint(checkpoint_path).build().eval()
    changed = {name: torch.from_numpy(array) for name, array in result.state_dict().items()}
    assert changed
    assert module.load_state_dict(changed, strict=False).unexpected_keys == []
    expected = onnx.reference.ReferenceEvaluator(result.model).run(None, {"input": images})[0]
    np.testing.assert_allclose(module(torch.from_numpy(images)).detach().numpy(), expected, rtol=1e-4, atol=1e-4)


def test_a_result_replaces_no_file_and_no_input(onnx_path, tmp_path):
    result = vsfix.optimize(onnx_path, method="none")
    with pytest.raises(vsfix.VsfixError, match="is an input"):
        result.save(onnx_path, force=True)
    (tmp_path / "there.onnx").write_text("precious")
    for write in (result.save, vsfix.inspect(onnx_path).to_html, vsfix.inspect(onnx_path).save):
        with pytest.raises(vsfix.VsfixError, match="exists already"):
            write(tmp_path / "there.onnx")
    assert (tmp_path / "there.onnx").read_text() == "precious"


def test_no_result_is_written_onto_what_it_was_made_from(onnx_path, checkpoint_path, images, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    onnx.save_model(onnx.load(onnx_path), "m.onnx", save_as_external_data=True, location="w.bin", size_threshold=999)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "checkpoint.pt").write_bytes(checkpoint_path.read_bytes())
    labels = load_dataset("digits", "train").labels[:64]
    np.savez("d.npz", input=images[:64], labels=labels)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.*")}
    inspected, repaired = vsfix.inspect("m.onnx", "d.npz"), vsfix.optimize("m.onnx", "d.npz", method="none")
    compared = vsfix.benchmark("m.onnx", "d.npz", repairs="none", seconds=0)
    verified = vsfix.verify("m.onnx", "run", "d.npz")
    monkeypatch.chdir("/")
    writers = [inspected.save, inspected.to_html, repaired.save, repaired.to_html]
    writers += [compared.save, compared.to_html, compared.save_predictions, verified.save]
    writers += [lambda path, force: repaired.save(tmp_path / "new.onnx", force, html=path)]
    for write in writers:
        for name in ("m.onnx", "w.bin", "d.npz"):
            with pytest.raises(vsfix.VsfixError, match="is an input"):
                write(tmp_path / name, force=True)
    for write in (verified.save, vsfix.export(str(tmp_path / "run")).save):
        with pytest.raises(vsfix.VsfixError, match="is an input"):
            write(tmp_path / "run" / "checkpoint.pt", force=True)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.*")} == before
    assert "files_read" not in inspected.to_dict() | compared.to_dict() | verified.to_dict()


def test_whole_numbers_of_numpy_and_no_step_between_are_taken(onnx_path, images):
    found = vsfix.inspect(onnx_path, images, samples=np.int64(32), batch_size=np.int32(8), seed=np.uint8(1))
    assert found.samples == 32
    assert json.loads(found.to_json())["samples"] == 32
    assert vsfix.verify(onnx_path, onnx_path, images[:8], via=None).status == "PASS"


def test_a_refused_repair_is_saved_by_force_alone(settled, tmp_path):
    x = np.random.default_rng(2).normal(0.3, 1.2, (64, 3, 8, 8)).astype(np.float32)
    with pytest.raises(vsfix.RefusedRepairError) as refused:
        vsfix.optimize(settled, 1000 * x, method="exact", layers="all")
    result = refused.value.result
    with pytest.raises(vsfix.VsfixError) as error:
        result.save(tmp_path / "m.onnx")
    assert (str(error.value), error.value.exit_code) == (result.verdict, 1)
    assert not (tmp_path / "m.onnx").exists()
    result.save(tmp_path / "m.onnx", force=True)
    onnx.checker.check_model(tmp_path / "m.onnx")


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (lambda path: vsfix.inspect(7), "a int is no model"),
        (lambda path: vsfix.inspect("gone.onnx"), "gone.onnx: no such file"),
        (
            lambda path: vsfix.inspect(onnx.ModelProto()),
            "the model in memory: is not an ONNX file, or holds an empty graph",
        ),
        (lambda path: vsfix.inspect(path, samples=0), "samples 0: must be a whole number from 1 on"),
        (lambda path: vsfix.inspect(path, 7), "data: a int is not read"),
        (lambda path: vsfix.optimize(path, seed=-1), "seed -1: must be a whole number from 0 on"),
        (lambda path: vsfix.optimize(path, max_memory="2Q"), "--max-memory '2Q': write a size as 512M or 2G"),
        (lambda path: vsfix.optimize(path, max_loss=1.0), "needs --eval-data"),
        (lambda path: vsfix.optimize(path, max_loss="1", eval_data="digits"), "--max-loss '1': needs"),
        (lambda path: vsfix.optimize(path, layers=None), "layers None: give one text"),
        (lambda path: vsfix.optimize(path, layers=["bn1"]), "layers ['bn1']: give one text"),
        (lambda path: vsfix.optimize(path, input_shape=16), "input_shape 16: give whole numbers"),
        (lambda path: vsfix.optimize(path, input_shape=(16, 0)), "input_shape 0: must be a whole number from 1 on"),
        (lambda path: vsfix.optimize(path, precision="foo"), "choose one of fp32, tf32, fp16, bf16, int8, fp8"),
        (lambda path: vsfix.optimize(path, eval_split="zz"), "eval_split 'zz': choose train or test"),
        (lambda path: vsfix.optimize(path, output_kinds="classes"), "output_kinds 'classes': give a dict"),
        (lambda path: vsfix.inspect(path, noise=None), "noise None: give a text, or several in a list"),
        (lambda path: vsfix.inspect(path, noise=[5]), "noise: 5 is no text"),
        (lambda path: vsfix.inspect(path, output_kinds=["classes"]), "output_kinds ['classes']: give a dict"),
        (lambda path: vsfix.verify(path, path, via=7), "via: a int is no model"),
        (lambda path: vsfix.verify(path, path, split="zz"), "split 'zz': choose train or test"),
        (lambda path: vsfix.benchmark([], "digits"), "models: there is none"),
        (lambda path: vsfix.benchmark(None, "digits"), "models: a NoneType is no model"),
        (lambda path: vsfix.benchmark(path, "digits", batches=64), "batches 64: give whole numbers"),
        (lambda path: vsfix.benchmark(path, "digits", seconds="3"), "seconds '3': give a number"),
        (lambda path: vsfix.export(nn.Linear(3, 2), torch.zeros(2, 3), opset="18"), "opset '18': must be a whole"),
        (lambda path: vsfix.export("a:b", input_shape=16), "input_shape 16: give whole numbers"),
        (lambda path: vsfix.optimize(path, noise="bn"), "bn"),
        (lambda path: vsfix.verify(path, path, backend="abacus"), "backend 'abacus': unknown"),
        (
            lambda path: vsfix.verify(onnx.load(path), path, backend="torch"),
            "the model in memory: the torch backend runs a checkpoint",
        ),
        (lambda path: vsfix.benchmark(path, np.zeros((4, 1, 8, 8), np.float32), metric="r2"), "has no array 'labels'"),
        (lambda path: vsfix.benchmark(path, "digits", metric="f1"), "--metric f1: choose one of top1, top5, mse"),
        (lambda path: vsfix.build(path, runtime="abacus"), "runtime 'abacus': unknown"),
        (lambda path: vsfix.export(nn.Linear(3, 2)), "example_inputs: give a batch"),
        (lambda path: vsfix.export(7), "a int can't be exported"),
        (lambda path: vsfix.export("a:b"), "a factory needs inputs, as 'image:Nx3x32x32', or input_shape"),
        (lambda path: vsfix.export(path, torch.zeros(2, 3)), "a checkpoint has its own weights and inputs"),
    ],
)
def test_what_can_not_be_used_is_one_line(onnx_path, wrong, words):
    with pytest.raises(vsfix.VsfixError) as error:
        wrong(onnx_path)
    assert words in str(error.value)
    assert "\n" not in str(error.value)
    assert error.value.exit_code == 2


@needs_rtx
def test_an_engine_is_saved_with_its_sidecar(onnx_path, tmp_path):
    engine = vsfix.build(onnx.load(onnx_path), runtime="tensorrt-rtx", targets="sm89", shapes={"input": (2, 1, 8, 8)})
    engine.save(tmp_path / "e.plan")
    assert (tmp_path / "e.plan").read_bytes() == engine.plan
    sidecar = json.loads((tmp_path / "e.plan.json").read_text())
    assert sidecar["plan"]["name"] == "e.plan"
    assert sidecar["profile"]["input"]["maximum"] == [2, 1, 8, 8]
    assert "engine (tensorrt-rtx" in engine.verdict
