from __future__ import annotations

from itertools import count

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from vsfix.graph_passes.errors import DataError, InputError
from vsfix.pipeline.data.data_forms import hold_data, read_data
from vsfix.pipeline.data.loading import load_samples
from vsfix.trainers.data.loader_order import seeded_batches

X = np.arange(60, dtype=np.float32).reshape(20, 3)
Y = np.arange(20)


def batches():
    return (X[start : start + 4] for start in range(0, 20, 4))


def labelled_batches():
    return ((X[start : start + 4], Y[start : start + 4]) for start in range(0, 20, 4))


FORMS = {
    "array": lambda: X,
    "read-only array of the other byte order": lambda: X.astype(">f4"),
    "tensor": lambda: torch.from_numpy(X),
    "tensor with a gradient": lambda: torch.from_numpy(X.copy()).requires_grad_(),
    "dict": lambda: {"x": X, "unused": Y},
    "dict of tensors": lambda: {"x": torch.from_numpy(X)},
    "tuple": lambda: (X,),
    "list of batches": lambda: list(batches()),
    "generator": batches,
    "generator of dicts": lambda: ({"x": batch} for batch in batches()),
    "DataLoader": lambda: DataLoader(TensorDataset(torch.from_numpy(X)), batch_size=7, shuffle=True),
}
LABELLED = {
    "dict": lambda: {"x": X, "labels": Y},
    "tuple": lambda: (X, Y),
    "tuple with a dict": lambda: ({"x": X}, Y.tolist()),
    "generator": labelled_batches,
    "generator of dicts": lambda: ({"x": x, "labels": y} for x, y in labelled_batches()),
    "DataLoader": lambda: DataLoader(TensorDataset(torch.from_numpy(X), torch.from_numpy(Y)), batch_size=6),
}


def sorted_rows(samples) -> np.ndarray:
    array = samples.inputs["x"]
    return array[np.argsort(array[:, 0])]


@pytest.mark.parametrize("form", FORMS)
def test_every_form_holds_the_same_samples(form):
    found = read_data(FORMS[form](), ["x"], samples=None, seed=0)
    np.testing.assert_array_equal(sorted_rows(found), X)
    assert found.inputs["x"].dtype.isnative
    assert found.labels is None


@pytest.mark.parametrize("form", LABELLED)
def test_labels_stay_with_their_inputs(form):
    found = read_data(LABELLED[form](), ["x"], samples=None, seed=0)
    assert len(found) == 20
    np.testing.assert_array_equal(found.inputs["x"], X[found.labels])


@pytest.mark.parametrize("form", LABELLED)
def test_a_choice_takes_the_labels_along(form):
    found = read_data(LABELLED[form](), ["x"], samples=10, seed=3)
    assert len(set(found.labels.tolist())) == 10
    np.testing.assert_array_equal(found.inputs["x"], X[found.labels])


TARGETS = {"mask": Y[:, None].repeat(4, axis=1), "box": X[:, :2], "text": np.array(["a"] * 20), "other": np.zeros(3)}


@pytest.mark.parametrize("form", ["dict", "batches", "file"])
def test_other_arrays_of_numbers_are_targets_where_labels_are_wanted(tmp_path, form):
    whole = {"x": X, "labels": Y, **TARGETS}
    np.savez(tmp_path / "x.npz", **whole)
    batches = [{name: array[:12] for name, array in whole.items()}, {n: a[12:] for n, a in whole.items()}]
    data = {"dict": whole, "batches": batches, "file": tmp_path / "x.npz"}[form]
    options = {"split": "test", "preprocessing": None, "input_names": ["x"], "samples": 9, "seed": 5}
    found = load_samples(data, **options)
    assert set(found.all_targets) == {"labels", "mask", "box"}
    for part in (found.lazily(), found.first(9)):
        np.testing.assert_array_equal(part.inputs["x"], X[part.labels])
        np.testing.assert_array_equal(part.targets["mask"], TARGETS["mask"][part.labels])
        np.testing.assert_array_equal(part.targets["box"], TARGETS["box"][part.labels])
    assert not load_samples(data, **options, labelled=False).all_targets


def test_python_and_a_file_draw_the_same_samples(tmp_path):
    np.savez(tmp_path / "x.npz", x=X, labels=Y)
    options = {"split": "test", "preprocessing": None, "input_names": ["x"], "samples": 9, "seed": 5}
    by_text, by_path, by_array = (
        load_samples(data, **options) for data in (str(tmp_path / "x.npz"), tmp_path / "x.npz", {"x": X, "labels": Y})
    )
    for other in (by_path, by_array):
        np.testing.assert_array_equal(by_text.inputs["x"], other.inputs["x"])
        np.testing.assert_array_equal(by_text.labels, other.labels)


def test_an_endless_generator_is_read_no_further_than_wanted():
    asked = []

    def endless():
        for number in count():
            asked.append(number)
            yield np.full((4, 3), number, np.float32)

    found = read_data(endless(), ["x"], samples=10, seed=0)
    assert asked == [0, 1, 2]
    assert sorted(found.inputs["x"][:, 0]) == [0.0] * 4 + [1.0] * 4 + [2.0] * 2
    given = endless()
    for _ in range(2):
        read_data(given, ["x"], samples=4, seed=0)
    assert len(asked) == 5


def test_an_endless_generator_ends_at_the_memory_where_all_is_wanted():
    endless = (np.zeros((4, 3), np.float32) for _ in count())
    with pytest.raises(DataError, match="give samples=N"):
        read_data(endless, ["x"], samples=None, seed=0, max_memory=1000)


def test_what_was_drawn_is_shuffled_by_the_seed():
    first, again, other = (read_data(batches(), ["x"], samples=20, seed=seed).inputs["x"] for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_a_loader_in_the_order_of_its_classes_gives_samples_of_all():
    by_class = DataLoader(TensorDataset(torch.from_numpy(np.repeat(X[:4], 50, axis=0))), batch_size=8)
    found = read_data(by_class, ["x"], samples=24, seed=0)
    assert len(np.unique(found.inputs["x"][:, 0])) == 4


def test_what_is_held_gives_the_same_samples_as_the_generator():
    held = hold_data(labelled_batches(), ["x"], 12, 1)
    for wanted in (12, 5, 5):
        np.testing.assert_array_equal(
            read_data(held, ["x"], samples=wanted, seed=1).inputs["x"],
            read_data(labelled_batches(), ["x"], samples=wanted, seed=1).inputs["x"],
        )
    assert hold_data("digits", ["x"], 3, 0) == "digits"


def test_what_is_held_was_drawn_with_the_seed_that_reads_it():
    loader = DataLoader(TensorDataset(torch.from_numpy(X)), batch_size=4)
    for seed in (0, 1):
        held = read_data(hold_data(loader, ["x"], 12, seed), ["x"], samples=6, seed=seed)
        once = read_data([(hold_data(loader, ["x"], 12, seed)[0][0],)], ["x"], samples=6, seed=seed)
        np.testing.assert_array_equal(held.inputs["x"], once.inputs["x"])
    first, other = (hold_data(loader, ["x"], 12, seed)[0][0]["x"] for seed in (0, 1))
    np.testing.assert_array_equal(first, np.concatenate([batch[0] for batch in seeded_batches(loader, 0)])[:12])
    assert not np.array_equal(first, other)


OTHER_TARGETS = {
    "masks": lambda: np.zeros((20, 8, 8), np.int64),
    "one-hot": lambda: np.eye(20, dtype=np.int64),
    "column": lambda: Y[:, None],
    "bool": lambda: Y > 3,
    "text": lambda: "a caption",
    "texts": lambda: [f"row {row}" for row in range(20)],
    "boxes": lambda: [{"boxes": np.zeros((row, 4))} for row in range(20)],
    "a dict": lambda: {"boxes": None},
    "of another length": lambda: Y[:3],
    "nothing": lambda: None,
}


@pytest.mark.parametrize("name", OTHER_TARGETS)
def test_targets_are_not_looked_at_where_no_labels_are_wanted(name):
    targets = OTHER_TARGETS[name]()
    for data in ((X, targets), {"x": X, "labels": targets}, [(X, targets)], [[X, targets, targets]]):
        found = read_data(data, ["x"], samples=20, seed=0, labelled=False)
        np.testing.assert_array_equal(sorted_rows(found), X)
        assert found.labels is None
    np.testing.assert_array_equal(hold_data([(X, targets)], ["x"], 20, 0)[0][0]["x"], X)


def test_a_generator_and_a_data_set_that_fail_are_one_line_with_the_error():
    def failing():
        yield X
        raise KeyError("image")

    class Broken(torch.utils.data.Dataset):
        def __len__(self):
            return 20

        def __getitem__(self, row):
            raise OSError("disk")

    for data, words in ((failing(), "fails at batch 1: KeyError 'image'"), (DataLoader(Broken()), "0: OSError disk")):
        with pytest.raises(DataError, match=words) as error:
            read_data(data, ["x"], samples=None, seed=0)
        assert isinstance(error.value.__cause__, KeyError | OSError)


def test_several_inputs_come_in_the_order_of_the_model_or_by_name():
    pair = read_data((X, Y[:, None], Y), ["x", "y"], samples=None, seed=0)
    np.testing.assert_array_equal(pair.inputs["y"], Y[:, None])
    np.testing.assert_array_equal(pair.labels, Y)
    named = read_data({"y": Y[:, None], "x": X}, ["x", "y"], samples=6, seed=0)
    assert list(named.inputs) == ["x", "y"]


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (X[0, 0], "single number"),
        ({"z": X}, "has no array 'x', which the model needs; it holds z"),
        ((X, Y, Y), "holds 3 arrays"),
        ((), "holds 0 arrays"),
        ((X, Y[:3]), "differ in length: x has 20, labels has 3"),
        ([], "there is none"),
        (iter([None]), "batch 0: is a NoneType"),
        (iter([X, (X, Y)]), "labels in all, or in none"),
        (iter([X, X[:, :2]]), "differ in shape"),
        (iter([X[:0]]), "holds no sample"),
        (TensorDataset(torch.from_numpy(X), torch.from_numpy(Y)), "labels is a single number"),
        (torch.from_numpy(X).to(torch.bfloat16), "can't be read as an array"),
        (np.full((9, 3), np.nan, np.float32), "is not finite in 9 of 9"),
        (np.array([["a"]]), "numbers are needed"),
        (np.ma.masked_greater(X, np.median(X)), "masked values; fill them in, or leave the rows out"),
    ],
)
def test_what_can_not_be_used_is_one_line(data, words):
    with pytest.raises(DataError, match=words.replace("(", "\\(")) as error:
        read_data(data, ["x"], samples=None, seed=0)
    assert "\n" not in str(error.value)


def test_an_object_that_is_no_data_is_refused():
    with pytest.raises(DataError, match="labels is a single number"):
        read_data(TensorDataset(torch.from_numpy(X), torch.from_numpy(Y)), ["x"], samples=9, seed=0, labelled=False)
    with pytest.raises(InputError, match="a int is not read; give a text"):
        read_data(7, ["x"], samples=None, seed=0)
    with pytest.raises(DataError, match="give a dict of arrays"):
        read_data(X, ["x", "y"], samples=None, seed=0)
