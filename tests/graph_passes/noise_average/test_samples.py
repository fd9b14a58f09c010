from __future__ import annotations

import numpy as np
import pytest

from vsfix.graph_passes.errors import DataError
from vsfix.graph_passes.noise_average.samples import SampleSet, held_out_rows

RNG = np.random.default_rng(3)


def make_rows(count: int) -> dict[str, np.ndarray]:
    return {"x": RNG.normal(size=(count, 3)).astype(np.float32), "m": RNG.integers(0, 9, (count, 2))}


def in_batches(rows: dict[str, np.ndarray], size: int) -> list[dict[str, np.ndarray]]:
    count = len(rows["x"])
    return [{name: array[i : i + size] for name, array in rows.items()} for i in range(0, count, size)]


def assert_equal(one: SampleSet, other: SampleSet) -> None:
    assert one.keys == other.keys
    assert one.first == other.first
    for ours, theirs in zip(one.batches, other.batches, strict=True):
        assert all(ours[name].tobytes() == theirs[name].tobytes() for name in ours)


@pytest.mark.parametrize("size", [1, 7, 64])
def test_batches_of_any_size_and_order_give_the_same_set(size):
    rows = make_rows(100)
    shuffled = {name: array[np.random.default_rng(size).permutation(100)] for name, array in rows.items()}
    assert_equal(SampleSet.of([rows]), SampleSet.of(in_batches(rows, size)))
    turned = np.random.default_rng(size).permutation(100)
    shuffled = {name: array[turned] for name, array in rows.items()}
    assert_equal(SampleSet.of([rows]), SampleSet.of(in_batches(shuffled, size)))


def test_another_value_in_one_sample_gives_another_set():
    rows = make_rows(20)
    changed = {**rows, "m": rows["m"] + (np.arange(20) == 4)[:, None]}
    before, after = set(SampleSet.of([rows]).keys), set(SampleSet.of([changed]).keys)
    assert len(before & after) == 19


def test_every_sample_is_there_once_beside_its_partner():
    rows = make_rows(37)
    found = SampleSet.of(in_batches(rows, 5))
    x, m = (np.concatenate([batch[name] for batch in found.batches]) for name in ("x", "m"))
    pairs = {(a.tobytes(), b.tobytes()) for a, b in zip(x, m, strict=True)}
    assert pairs == {(a.tobytes(), b.tobytes()) for a, b in zip(rows["x"], rows["m"], strict=True)}
    assert len(found) == 37
    assert found.first[-1] + len(found.batches[-1]["x"]) == 37


def test_equal_samples_get_different_keys():
    found = SampleSet.of([{"x": np.zeros((5, 2), np.float32)}])
    assert len(set(found.keys)) == 5


def test_a_prescribed_batch_is_kept():
    found = SampleSet.of([make_rows(12)], prescribed=4)
    assert [len(batch["x"]) for batch in found.batches] == [4, 4, 4]


def test_what_has_no_batch_axis_stays_whole():
    rows = {**make_rows(70), "temperature": np.float32(2.0) * np.ones(())}
    found = SampleSet.of(in_batches({name: rows[name] for name in ("x", "m")}, 70))
    with_scalar = SampleSet.of([rows])
    assert with_scalar.keys == found.keys
    assert all(batch["temperature"].shape == () for batch in with_scalar.batches)


def test_rows_takes_samples_with_their_keys():
    found = SampleSet.of([make_rows(100)])
    chosen = held_out_rows(100)
    part = found.rows(chosen)
    whole = np.concatenate([batch["x"] for batch in found.batches])
    np.testing.assert_array_equal(np.concatenate([batch["x"] for batch in part.batches]), whole[chosen])
    assert part.keys == tuple(key for key, take in zip(found.keys, chosen, strict=True) if take)


def test_one_in_three_is_held_out_and_none_of_two():
    assert held_out_rows(9).tolist() == [False, False, True] * 3
    assert not held_out_rows(2).any()


def test_no_samples_are_refused():
    with pytest.raises(DataError, match="empty"):
        SampleSet.of([])


def test_a_copy_is_left_out_and_counted():
    rows = make_rows(20)
    doubled = {name: np.concatenate([array, array[:7]]) for name, array in rows.items()}
    found = SampleSet.of([doubled]).without_copies()
    assert_equal(found, SampleSet.of([rows]))
    assert found.copies == 7
    assert found.warnings == ("7 of 27 samples were left out: they are copies of others",)
    assert SampleSet.of([rows]).without_copies().warnings == ()


@pytest.mark.parametrize(("own", "copies", "left"), [(20, 4, 16), (3, 5, 8), (16, 0, 16)])
def test_a_graph_of_one_batch_size_keeps_whole_batches(own, copies, left):
    rows = make_rows(own)
    some = {name: np.concatenate([array, array[np.arange(copies) % own]]) for name, array in rows.items()}
    found = SampleSet.of([some], 8).without_copies(8)
    assert len(found) == left
    assert {len(batch["x"]) for batch in found.batches} == {8}
