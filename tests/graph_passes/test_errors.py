from __future__ import annotations

import pytest

from vsfix.graph_passes.errors import DataError, InputError, StoppedError


@pytest.mark.parametrize("end", ["\n", "\r\n", "\u2028", "\x0b"])
def test_a_name_with_line_breaks_leaves_the_message_one_line(end):
    error = DataError(f"a.npz: array 'x{end}y  z' is damaged")
    assert str(error) == "a.npz: array 'x y  z' is damaged"
    assert str(InputError(f"b: {error}")) == "b: a.npz: array 'x y  z' is damaged"
    assert str(StoppedError(f"stopped{end}here", 15)) == "stopped here"
