from __future__ import annotations

import importlib
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from PIL import Image

from vsfix.graph_passes.io.model_file import read_model
from vsfix.pipeline.data.calibration import load_samples, read_preprocessing
from vsfix.trainers.data.preprocessing import Preprocessing
from vsfix.trainers.export.exporting import export_checkpoint
from vsfix.trainers.training.checkpoint import load_checkpoint

SOURCE = """
from torch import nn

def network():
    return nn.Sequential(nn.Linear(6, 5), nn.Dropout(0.25), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 3))
"""


def test_a_checkpoint_carries_its_preprocessing_and_its_noise(checkpoint_path, tmp_path):
    checkpoint = load_checkpoint(checkpoint_path)
    result = export_checkpoint(checkpoint, tmp_path / "m.onnx", opset=17)
    assert (result.opset, len(result.batch_norms), len(result.markers)) == (17, 2, 2)
    assert read_preprocessing(read_model(tmp_path / "m.onnx")) == checkpoint.preprocessing


def test_a_factory_without_weights_is_exported_with_a_warning(call, tmp_path, monkeypatch):
    (tmp_path / "exported_network.py").write_text(SOURCE)
    monkeypatch.chdir(tmp_path)
    line = ("export", "exported_network:network", "--input-shape", "6", "-o", tmp_path / "m.onnx", "--force")
    assert call(*line).stdout.startswith("WARN no --weights: the file holds those that exported_network:network gave")
    module = sys.modules.pop("exported_network")
    torch.save(module.network().state_dict(), tmp_path / "weights.pt")
    assert "WARN" not in call(*line, "--weights", tmp_path / "weights.pt").stdout
    sys.modules.pop("exported_network")


IMAGES = """
import torch
from torch import nn
from torch.nn import functional as F


def colour():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.Dropout(0.5), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(8, 2),
    )


class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.words, self.drop, self.bn = nn.Embedding(99, 4), nn.Dropout(0.5), nn.BatchNorm1d(4)
        self.image = nn.Conv2d(3, 4, 3)

    def forward(self, image, ids):
        h = self.image(image).mean((2, 3))
        return {"scores": self.bn(self.drop(h + self.words(ids).mean(1))), "image": h}


def two():
    torch.manual_seed(0)
    module = Two()
    for _ in range(50):
        module(torch.randn(64, 3, 8, 8), torch.randint(0, 99, (64, 5)))
    return module
"""


@pytest.fixture
def there(tmp_path, monkeypatch):
    """A folder with a module's file, a folder of images in two colours, and the names of the classes."""
    (tmp_path / "colour_network.py").write_text(IMAGES)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    rng = np.random.default_rng(0)
    for split, count in (("train", 20), ("val", 8)):
        for kind, level in (("dark", 60), ("light", 190)):
            folder = tmp_path / "pictures" / split / kind
            folder.mkdir(parents=True)
            for number in range(count):
                colour = np.clip(rng.normal(level, 30, 3), 0, 255)  # one for a picture: resampled it is the same
                pixels = np.full((12, 12, 3), colour).astype(np.uint8)
                Image.fromarray(pixels).save(folder / f"{number}.png")
    (tmp_path / "names.txt").write_text("dark\nlight\n")
    yield tmp_path
    sys.modules.pop("colour_network", None)


def test_a_foreign_export_that_says_how_its_images_are_made_takes_a_folder_of_them(call, there):
    line = ("export", "colour_network:colour", "-o", "m.onnx", "--input", "image:Nx3xHxW", "--mean", "0.4,0.5,0.6")
    said = (*line, "--std", "0.2,0.25,0.3", "--size", "12x12", "--class-names", "names.txt")
    assert call(*said).exit_code == 0
    found = read_preprocessing(read_model(there / "m.onnx"))
    assert found == Preprocessing(3, (12, 12), (0.4, 0.5, 0.6), (0.2, 0.25, 0.3), ("dark", "light"))
    verified = call("verify", "m.onnx", "--against", "colour_network:colour", "--data", "imagefolder:pictures")
    assert (verified.exit_code, "16 samples" in verified.stdout) == (0, True)
    assert call("inspect", "m.onnx", "--data", "imagefolder:pictures").exit_code == 0
    loaded = load_samples(
        "imagefolder:pictures", split="train", preprocessing=found, input_names=["image"], samples=None, seed=0
    )
    pixels = np.stack([np.asarray(Image.open(path)) for path in sorted(Path("pictures/train").rglob("*.png"))])
    by_hand = ((pixels / 255 - [0.4, 0.5, 0.6]) / [0.2, 0.25, 0.3]).transpose(0, 3, 1, 2)
    both = [np.sort(images.reshape(len(images), -1).sum(1)) for images in (loaded.inputs["image"], by_hand)]
    np.testing.assert_allclose(*both, rtol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--mean", "0.5,0.5,0.5", "--size", "12x12"), "--mean and --std go together"),
        (("--mean", "0.5,0.5,0.5", "--std", "1,1,1"), "takes images of any size; say which one, as 224x224"),
        (("--mean", "0.5,0.5", "--std", "1,1", "--size", "12x12"), "2 means and 2 deviations for 3 channels"),
        (("--mean", "123,116,103", "--std", "58,57,57", "--size", "12x12"), "divide mean and deviation by 255"),
        (("--mean", "0,0,0", "--std", "1,1,0", "--size", "12x12"), "--std 1,1,0: must be above 0"),
        (("--mean", "0,0,0", "--std", "1,1,1", "--class-names", "no.txt"), "--class-names no.txt: no such file"),
        (("--weights-key", "ema"), "--weights-key: goes with --weights"),
    ],
)
def test_what_can_not_be_said_of_images_is_refused_in_one_line(call, there, arguments, words):
    line = ("export", "colour_network:colour", "-o", "m.onnx", "--input", "image:Nx3xHxW")
    result = call(*line, *arguments)
    assert result.exit_code == 2
    assert words in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert not Path("m.onnx").exists()


def test_several_inputs_go_the_whole_way_from_the_command_line(call, there):
    line = (
        "export",
        "colour_network:two",
        "-o",
        "m.onnx",
        "--input",
        "image:Nx3x8x8",
        "--input",
        "ids:NxT:int64:0..98",
    )
    text = call(*line).stdout
    assert "inputs: image, ids; outputs: scores, image_out" in text
    assert "in output" in text.splitlines()[-2]
    rng = np.random.default_rng(0)
    rows = {"image": rng.normal(size=(40, 3, 8, 8)).astype(np.float32), "ids": rng.integers(0, 99, (40, 5))}
    np.savez("rows.npz", **rows)
    assert call("inspect", "m.onnx", "--data", "rows.npz").exit_code == 0
    repaired = ("optimize", "m.onnx", "-o", "r.onnx", "--data", "rows.npz", "--method", "match", "--force")
    result = call(*repaired)
    assert result.exit_code == 0, result.stderr
    assert call("verify", "r.onnx", "--against", "r.onnx", "--data", "rows.npz").exit_code == 0
    assert "go with one input of images" in call(*line, "--mean", "1,1,1", "--std", "1,1,1", "--force").stderr


def test_averages_are_named_and_can_be_chosen(call, there):
    colour_network = importlib.import_module("colour_network")
    plain, average = (colour_network.colour().state_dict() for _ in range(2))
    average = {name: tensor + 1 for name, tensor in average.items()}
    torch.save({"state_dict": plain, "state_dict_ema": average, "epoch": 3}, "w.pt")
    line = ("export", "colour_network:colour", "--input-shape", "3x12x12", "--weights", "w.pt", "--force", "-o")
    text = call(*line, "m.onnx").stdout
    assert "WARN the file of the weights holds averages too (state_dict_ema), which were left; --weights-key" in text
    assert "weights: w.pt, state_dict" in text
    assert "WARN" not in call(*line, "ema.onnx", "--weights-key", "state_dict_ema").stdout
    for name, state in (("m.onnx", plain), ("ema.onnx", average)):
        held = {each.name: onnx.numpy_helper.to_array(each) for each in onnx.load(name).graph.initializer}
        np.testing.assert_array_equal(held["6.bias"], state["6.bias"].numpy())
