from __future__ import annotations

import numpy as np
import pytest

from vsfix.graph_passes.errors import DataError
from vsfix.pipeline.backends.feeds import InputSpec, check_feeds

IMAGE = InputSpec("image", np.float32, (None, 3, 8, 8))
ANYTHING = InputSpec("anything", None, None)


def test_what_fits_passes():
    check_feeds([IMAGE, ANYTHING], {"image": np.zeros((5, 3, 8, 8), np.float32), "anything": np.zeros(2, np.int8)})


@pytest.mark.parametrize(
    ("array", "given"),
    [
        (np.zeros((5, 3, 8, 8)), "float64 (5, 3, 8, 8)"),
        (np.zeros((5, 3, 8, 8), np.float16), "float16 (5, 3, 8, 8)"),
        (np.zeros((5, 8, 8, 3), np.float32), "float32 (5, 8, 8, 3)"),
        (np.zeros((3, 8, 8), np.float32), "float32 (3, 8, 8)"),
    ],
)
def test_what_does_not_fit_is_named_with_what_the_model_takes(array, given):
    with pytest.raises(DataError) as caught:
        check_feeds([IMAGE], {"image": array})
    assert str(caught.value) == f"input 'image': the model takes float32 (?, 3, 8, 8), but {given} was given"


def test_a_missing_input_is_named():
    with pytest.raises(DataError, match="input 'image': is missing"):
        check_feeds([IMAGE], {})


def test_an_unknown_input_is_named():
    with pytest.raises(DataError, match="input 'picture': the model has none of this name; it takes image"):
        check_feeds([IMAGE], {"image": np.zeros((5, 3, 8, 8), np.float32), "picture": np.zeros(1)})
