from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from vsfix.graph_passes.errors import DataError, InputError
from vsfix.trainers.data.datasets import load_dataset, standardization
from vsfix.trainers.data.images import middle_of, random_part_of
from vsfix.trainers.data.preprocessing import Preprocessing
from vsfix.trainers.networks.network import NetworkConfig
from vsfix.trainers.training.checkpoint import load_checkpoint
from vsfix.trainers.training.training_config import TrainingConfig
from vsfix.trainers.training.training_data import DecodedImages
from vsfix.trainers.training.training_loop import TrainingOptions, train

SIZE = (16, 16)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Three classes of noise around three greys, in files of several kinds and sizes."""
    root = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for part, count in (("train", 6), ("val", 2)):
        for label, name in enumerate(("ant", "bee", "cat")):
            (root / part / name).mkdir(parents=True)
            for index in range(count):
                height, width = rng.integers(20, 40, 2)
                pixels = np.clip(rng.normal(60 + 60 * label, 10, (height, width, 3)), 0, 255).astype(np.uint8)
                image = Image.fromarray(pixels)
                suffix = ("png", "jpg", "webp", "bmp")[index % 4]
                (image.convert("L") if index == 5 else image).save(root / part / name / f"{index}.{suffix}")
            (root / part / name / "notes.txt").write_text("no image")
    return root


def test_classes_are_folders_and_files_are_decoded_when_asked_for(folder):
    train_part, test_part = (load_dataset(f"imagefolder:{folder}", split, size=SIZE) for split in ("train", "test"))
    assert train_part.class_names == test_part.class_names == ("ant", "bee", "cat")
    assert train_part.images.shape == (18, 16, 16, 3)
    assert test_part.labels.tolist() == [0, 0, 1, 1, 2, 2]
    means = [float(test_part.images[test_part.labels == label].mean()) for label in range(3)]
    assert means == pytest.approx([60, 120, 180], abs=8)
    np.testing.assert_array_equal(test_part.images[np.array([4, 1])], test_part.images[:][[4, 1]])


def test_the_middle_is_that_of_resizing_and_cutting():
    gradient = np.tile(np.arange(64, dtype=np.uint8)[None, :, None] * 4, (32, 1, 3))
    cut = middle_of(Image.fromarray(gradient), (28, 28))
    # The shorter side 32 stands for 32 pixels; of these the middle 28: no resizing at all, columns 18 to 45.
    np.testing.assert_array_equal(cut, gradient[2:30, 18:46])


def test_an_image_of_the_wanted_size_is_taken_as_it_is(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (12, 16, 3), dtype=np.uint8)
    for part in ("train", "test"):
        (tmp_path / part / "a").mkdir(parents=True)
        Image.fromarray(pixels).save(tmp_path / part / "a" / "0.png")
        read = load_dataset(f"imagefolder:{tmp_path}", part, size=(12, 16)).images[:]
        np.testing.assert_array_equal(read[0], pixels)
    turned = middle_of(Image.fromarray(pixels), (16, 12))
    assert turned.shape == (16, 12, 3)


def test_random_parts_stay_inside_and_cover_the_areas_and_aspects_of_the_recipe():
    rows, columns = np.mgrid[0:100, 0:80].astype(np.uint8)
    image = Image.fromarray(np.stack([rows, columns, np.zeros_like(rows)], -1))
    generator = np.random.default_rng(0)
    heights, widths = [], []
    for _ in range(300):
        part = random_part_of(image, (20, 20), generator).astype(float)
        heights.append((part[-1, 0, 0] - part[0, 0, 0]) * 20 / 19)
        widths.append((part[0, -1, 1] - part[0, 0, 1]) * 20 / 19)
    area = np.array(heights) * widths / 8000
    aspect = np.array(widths) / heights
    assert 0.05 < area.min() < 0.15
    assert 0.85 < area.max() < 1.1
    assert 0.65 < aspect.min() < 0.8
    assert 1.25 < aspect.max() < 1.5


def test_batches_are_the_same_however_many_processes_decode_them(folder):
    data = load_dataset(f"imagefolder:{folder}", "train", size=SIZE)
    mean, std = standardization(data)
    preprocessing = Preprocessing(3, SIZE, mean, std)
    rows = [torch.tensor([3, 1]), torch.tensor([17, 0])]
    alone, two = (
        list(DecodedImages(data.images, preprocessing, torch.device("cpu"), 7, workers).batches(rows, 1))
        for workers in (0, 2)
    )
    assert all(torch.equal(left, right) for left, right in zip(alone, two, strict=True))
    again = list(DecodedImages(data.images, preprocessing, torch.device("cpu"), 7, 0).batches(rows, 2))
    assert not torch.equal(alone[0], again[0])


def test_without_a_random_crop_a_batch_is_what_the_preprocessing_makes_of_the_images(folder):
    data = load_dataset(f"imagefolder:{folder}", "train", size=SIZE)
    preprocessing = Preprocessing(3, SIZE, (0.4, 0.5, 0.6), (0.2, 0.3, 0.1))
    rows = torch.tensor([5, 2, 9])
    (batch,) = DecodedImages(data.images, preprocessing, torch.device("cpu"), 0, 0).batches([rows], 0)
    np.testing.assert_allclose(batch.numpy(), preprocessing.apply(data.images[rows.numpy()]), atol=1e-6)


def test_a_network_is_trained_on_image_files_and_resumed_bit_for_bit(folder, tmp_path):
    network = NetworkConfig("preresnet-8", 3, SIZE, 3)
    config = TrainingConfig(f"imagefolder:{folder}", network, epochs=2, batch_size=4, samples=16)
    train(config, tmp_path / "whole")

    class Interrupted(Exception):
        pass

    def interrupt(_) -> None:
        raise Interrupted

    with pytest.raises(Interrupted):
        train(config, tmp_path / "broken", TrainingOptions(workers=1, on_epoch=interrupt))
    train(config, tmp_path / "broken")
    whole, broken = (load_checkpoint(tmp_path / name / "checkpoint.pt") for name in ("whole", "broken"))
    assert all(torch.equal(whole.model[name], tensor) for name, tensor in broken.model.items())


def test_a_damaged_image_is_named(folder, tmp_path):
    for part in ("train", "val"):
        (tmp_path / part / "ant").mkdir(parents=True)
        (tmp_path / part / "ant" / "x.jpg").write_bytes((folder / "val" / "ant" / "1.jpg").read_bytes()[:200])
    with pytest.raises(DataError, match=r"x\.jpg: can't be decoded"):
        load_dataset(f"imagefolder:{tmp_path}", "train", size=SIZE).images[:]


def test_no_image_is_handed_to_a_program(tmp_path, monkeypatch):
    started = []
    monkeypatch.setattr("subprocess.check_call", lambda *command, **_: started.append(command))
    path = tmp_path / "train" / "a" / "x.jpg"  # pillow runs Ghostscript on what is PostScript, whatever its name
    path.parent.mkdir(parents=True)
    path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n")
    with pytest.raises(DataError, match=r"x\.jpg: can't be decoded"):
        load_dataset(f"imagefolder:{tmp_path}", "train", size=SIZE).images[np.array([0])]
    assert started == []


def test_a_folder_of_another_layout_is_refused(folder, tmp_path):
    with pytest.raises(InputError, match=r"no folder .*images belong into DIR/train/CLASS"):
        load_dataset(f"imagefolder:{tmp_path}", "train")
    (tmp_path / "train").mkdir()
    with pytest.raises(InputError, match="holds no folders, one for each class"):
        load_dataset(f"imagefolder:{tmp_path}", "train")
    (tmp_path / "train" / "ant").mkdir()
    with pytest.raises(InputError, match="holds no images"):
        load_dataset(f"imagefolder:{tmp_path}", "train")
    with pytest.raises(InputError, match="no folder 'val' and no 'test'"):
        load_dataset(f"imagefolder:{tmp_path}", "test")
    (tmp_path / "val" / "dog").mkdir(parents=True)
    with pytest.raises(InputError, match=r"dog is a class that .* does not have"):
        load_dataset(f"imagefolder:{tmp_path}", "test")
    with pytest.raises(InputError, match="write imagefolder:DIR"):
        load_dataset("imagefolder", "test")


@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_image_is_one_line_whoever_decodes_it(folder, tmp_path, workers):
    for part in ("train", "val"):
        (tmp_path / part / "ant").mkdir(parents=True)
        (tmp_path / part / "ant" / "x.jpg").write_bytes((folder / "val" / "ant" / "1.jpg").read_bytes()[:200])
    images = load_dataset(f"imagefolder:{tmp_path}", "train", size=SIZE).images
    preprocessing = Preprocessing(3, SIZE, (0.4, 0.5, 0.6), (0.2, 0.3, 0.1))
    source = DecodedImages(images, preprocessing, torch.device("cpu"), 0, workers)
    with pytest.raises(DataError, match=r"^\S+x\.jpg: can't be decoded \([^\n]*\); remove or replace the file$"):
        list(source.batches([torch.tensor([0])], 1))


@pytest.mark.long
def test_an_image_of_more_than_eight_bits_is_refused_and_not_cut_off(tmp_path):
    ramp = Image.fromarray(np.linspace(0, 60000, 32 * 32).reshape(32, 32).astype(np.uint16))
    (tmp_path / "train" / "ant").mkdir(parents=True)
    ramp.save(tmp_path / "train" / "ant" / "x.png")
    with pytest.raises(DataError, match=r"x\.png: more than eight bits a channel"):
        load_dataset(f"imagefolder:{tmp_path}", "train", size=SIZE).images[:]
