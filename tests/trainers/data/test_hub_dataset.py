from __future__ import annotations

import sys

import numpy as np
import pytest
from PIL import Image

from vsfix.graph_passes.errors import DataError, InputError, MissingComponentError
from vsfix.trainers.data.datasets import load_dataset


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A folder of save_to_disk: images of one grey for each class."""
    datasets = pytest.importorskip("datasets", reason="datasets is not installed; pip install 'vsfix[hf]'")
    features = datasets.Features({"picture": datasets.Image(), "kind": datasets.ClassLabel(names=["dark", "light"])})
    parts = {
        part: datasets.Dataset.from_dict(
            {
                "picture": [Image.new("L", (20, 14), 50 + 150 * (i % 2)) for i in range(count)],
                "kind": [i % 2 for i in range(count)],
            },
            features=features,
        )
        for part, count in (("train", 6), ("validation", 2))
    }
    folder = tmp_path_factory.mktemp("saved")
    datasets.DatasetDict(parts).save_to_disk(str(folder))
    return folder


def test_columns_are_found_by_their_types_and_images_are_decoded(saved):
    found = load_dataset(f"hf:{saved}", "train", size=(8, 10))
    assert found.images.shape == (6, 8, 10, 3)
    assert found.class_names == ("dark", "light")
    assert found.labels.tolist() == [0, 1, 0, 1, 0, 1]
    assert [int(image[0, 0, 0]) for image in found.images[np.array([1, 2])]] == [200, 50]
    assert load_dataset(f"hf:{saved}", "test").labels.tolist() == [0, 1]


def test_no_image_is_handed_to_a_program(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    started = []
    monkeypatch.setattr("subprocess.check_call", lambda *command, **_: started.append(command))
    postscript = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n"
    features = datasets.Features({"x": datasets.Image(), "y": datasets.ClassLabel(names=["a"])})
    rows = {"x": [{"bytes": postscript, "path": None}], "y": [0]}
    datasets.DatasetDict({"train": datasets.Dataset.from_dict(rows, features)}).save_to_disk(str(tmp_path))
    with pytest.raises(DataError, match="hf: image 0: can't be decoded"):
        load_dataset(f"hf:{tmp_path}", "train").images[np.array([0])]
    assert started == []


def test_a_set_without_labels_is_refused(saved, tmp_path):
    datasets = pytest.importorskip("datasets")
    datasets.DatasetDict({"train": datasets.Dataset.from_dict({"x": [1]})}).save_to_disk(str(tmp_path))
    with pytest.raises(DataError, match="no column of type Image"):
        load_dataset(f"hf:{tmp_path}", "train")
    with pytest.raises(InputError, match="has the parts train, none to test on"):
        load_dataset(f"hf:{tmp_path}", "test")


def test_a_missing_library_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(MissingComponentError, match=r"pip install 'vsfix\[hf\]'"):
        load_dataset("hf:mnist", "train")
