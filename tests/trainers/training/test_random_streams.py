from __future__ import annotations

from vsfix.trainers.training.random_streams import Stream, stream_seed


def test_streams_of_different_purpose_are_different():
    positions = ((Stream.WEIGHTS,), (Stream.ORDER, 0), (Stream.ORDER, 1), (Stream.NOISE, 0, 0), (Stream.NOISE, 0, 1))
    seeds = [stream_seed(0, *position) for position in (*positions, (Stream.NOISE, 1, 0))]
    assert len({*seeds, stream_seed(1, Stream.ORDER, 0)}) == 7


def test_a_seed_means_the_same_for_ever():
    assert stream_seed(0, Stream.WEIGHTS) == 8668861027912758289
    assert stream_seed(7, Stream.NOISE, 3, 1) == 13839595843557499967
