"""A file against the module that it came from: inputs by name and by position, every output, a repair, a mistake."""

from __future__ import annotations

import json
import sys

import numpy as np
import onnx
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import vsfix
from vsfix.graph_passes.errors import DataError, InputError

SOURCE = """
import torch
from torch import nn
from torch.nn import functional as F


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 6, 3, padding=1)
        self.drop = nn.Dropout(0.5)
        self.bn = nn.BatchNorm2d(6)
        self.words = nn.Embedding(9, 6)
        self.head = nn.Linear(6, 4)

    def forward(self, image, ids):
        h = F.relu(self.bn(self.drop(self.conv(image))))
        pooled = h.mean((2, 3)) + self.words(ids).mean(1)
        return {"scores": self.head(pooled), "maps": (h, pooled.argmax(1))}


def build():
    return Network()
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The module's file, a checkpoint of it as DDP leaves one, its export, and samples."""
    path = tmp_path_factory.mktemp("mixed")
    (path / "verified_network.py").write_text(SOURCE)
    sys.path.insert(0, str(path))
    try:
        import verified_network  # type: ignore[import-not-found]
    finally:
        sys.path.remove(str(path))
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(96, 1, 8, 8, generator=generator)
    ids = torch.randint(0, 9, (96, 5), generator=generator)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = verified_network.build().train()
        with torch.no_grad():
            for _ in range(40):
                module(image, ids)
    torch.save({"model": {f"module.{name}": each for name, each in module.state_dict().items()}}, path / "weights.pt")
    np.savez(path / "rows.npz", image=image.numpy(), ids=ids.numpy())
    vsfix.export(module, (image[:4], ids[:4])).save(path / "model.onnx")
    yield path
    del sys.modules["verified_network"]


@pytest.fixture
def there(folder, monkeypatch):
    monkeypatch.chdir(folder)
    return folder


def loaded() -> nn.Module:
    module = sys.modules["verified_network"].build()
    state = torch.load("weights.pt")["model"]
    module.load_state_dict({name.removeprefix("module."): each for name, each in state.items()})
    return module


LINE = ("verify", "model.onnx", "--against", "verified_network:build", "--weights", "weights.pt", "--data", "rows.npz")


def test_a_file_agrees_with_its_module_in_every_output_and_the_worst_is_named(call, there):
    document = json.loads(call(*LINE, "--json", "-").stdout)
    assert document["status"] == "PASS"
    outputs = document["results"][0]["outputs"]
    assert list(outputs) == ["scores", "maps.0", "maps.1"]
    assert all(each["snr_db"] is None or each["snr_db"] > 110 for each in outputs.values())  # None is infinite
    worst = min((name for name in outputs if outputs[name]["snr_db"]), key=lambda name: outputs[name]["snr_db"])
    assert document["worst_output"].startswith(f"worst output '{worst}', ")
    assert document["verdict"].endswith(document["worst_output"])
    result = call(*LINE)
    assert result.stdout.splitlines()[-1].startswith("PASS model.onnx against verified_network:build: worst output '")
    assert all(f" {name} " in result.stdout for name in outputs)


def test_in_python_a_module_is_compared_as_it_is_and_stays_as_it_is(there):
    module = loaded().train()
    module.drop.eval()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    found = vsfix.verify("model.onnx", module, "rows.npz")
    assert (found.status, found.against) == ("PASS", "Network")
    assert module.training
    assert not module.drop.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())
    with torch.no_grad():
        module.head.bias[1] += 0.5
    failed = vsfix.verify("model.onnx", module, "rows.npz")
    assert failed.status == "FAIL"
    assert "worst output 'scores'" in failed.verdict
    assert "maps.0" not in failed.verdict
    assert failed.results[0].layers is not None
    assert failed.results[0].layers.first is not None
    assert failed.results[0].layers.first.tensor == "scores"


def test_inputs_of_other_names_are_given_in_order(there):
    class Renamed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = loaded()

        def forward(self, first: torch.Tensor, second: torch.Tensor) -> tuple[torch.Tensor, ...]:
            out = self.inner(first, second)
            return out["scores"], *out["maps"]

    class Turned(Renamed):
        def forward(self, ids: torch.Tensor, image: torch.Tensor) -> tuple[torch.Tensor, ...]:
            return super().forward(image, ids)

    class One(nn.Module):
        def forward(self, image: torch.Tensor) -> torch.Tensor:
            return image

    for module in (Renamed(), Turned()):
        found = vsfix.verify("model.onnx", module, "rows.npz")
        assert found.status == "PASS"
        assert list(found.results[0].outputs) == ["scores", "maps.0", "maps.1"]
    with pytest.raises(InputError, match=r"One.forward takes image: 2 inputs \(image, ids\) do not fit"):
        vsfix.verify("model.onnx", One(), "rows.npz")


def test_a_module_with_other_outputs_is_refused(there):
    class Fewer(nn.Module):
        def forward(self, image: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
            return image.mean((1, 2, 3))

    with pytest.raises(DataError, match=r"has the outputs scores, maps.0, maps.1, the reference logits"):
        vsfix.verify("model.onnx", Fewer(), "rows.npz")


def test_a_repaired_file_agrees_with_its_module_and_the_statistics_of_the_repair(call, there, tmp_path):
    repaired, statistics = tmp_path / "repaired.onnx", tmp_path / "s.npz"
    result = vsfix.optimize("model.onnx", "rows.npz", method="match", layers="all", refine=False)
    result.save(repaired, force=True, statistics=statistics)
    line = ("verify", repaired, *LINE[2:])
    assert call(*line, "--statistics", statistics).exit_code == 0
    without = call(*line)
    assert without.exit_code == 1
    assert "with --statistics" in without.stderr
    assert vsfix.verify(repaired, loaded(), "rows.npz", statistics=result.state_dict()).status == "PASS"


def test_a_module_that_vsfix_repaired_in_place_needs_no_hint(tmp_path):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = nn.Sequential(nn.Linear(5, 8), nn.Dropout(0.5), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))
        x = torch.randn(64, 5)
        for _ in range(60):
            module.train()(x)
    vsfix.torch.repair_(module.eval(), [x], method="match", refine=False)
    vsfix.export(module, x[:4]).save(tmp_path / "m.onnx")
    assert vsfix.verify(tmp_path / "m.onnx", module, x).status == "PASS"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--against", "nowhere:build"), "nowhere:build: can't be imported"),
        (("--weights", "rows.npz"), "--weights rows.npz: "),
        (("--weights-key", "ema"), "'ema' holds no weights of this module; choose with --weights-key: model.module"),
        (("--reference-backend", "onnxruntime"), "a module of PyTorch runs with torch or torch-compile"),
    ],
)
def test_what_can_not_be_used_is_one_line(call, there, arguments, words):
    result = call(*LINE, *arguments)
    assert result.exit_code == 2
    assert words in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_random_numbers_are_fed_where_a_file_says_what_it_takes(tmp_path):
    module = nn.Sequential(nn.Linear(5, 3), nn.Softmax(1))
    vsfix.export(module, torch.randn(4, 5)).save(tmp_path / "m.onnx")
    found = vsfix.verify(tmp_path / "m.onnx", module)
    assert (found.status, found.random) == ("PASS", True)


def test_what_lies_between_a_module_and_a_file_has_its_step(there, tmp_path):
    model = onnx.load("model.onnx")
    onnx.save(model, tmp_path / "copy.onnx")
    found = vsfix.verify(tmp_path / "copy.onnx", loaded(), "rows.npz", via="model.onnx")
    assert [step.step for step in found.results[0].budget][:2] == ["export", "runtime"]


def test_a_planted_mistake_in_a_second_output_fails(there):
    class Wrong(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = loaded()

        def forward(self, image: torch.Tensor, ids: torch.Tensor) -> dict[str, object]:
            out = self.inner(image, ids)
            return {"scores": out["scores"], "maps": (F.dropout(out["maps"][0], 0.01, True), out["maps"][1])}

    failed = vsfix.verify("model.onnx", Wrong(), "rows.npz", layers=False)
    assert failed.status == "FAIL"
    assert "output 'maps.0': SNR" in failed.verdict
    assert "'scores': SNR" not in failed.verdict
