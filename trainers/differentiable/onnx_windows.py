"""ONNX operators that slide a window over the positions of an image: convolutions and pooling, in 1 to 3 dimensions.

Padding is written out where torch has no word for it, so that every variant of the standard is the same few lines: pads
before and after each axis, auto_pad, and the positions that ceil_mode adds after the last window.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Any

import onnx_graphsurgeon as gs
import torch
from torch.nn import functional

from .onnx_call import Operator, OperatorCall, along, only

_CONVOLUTIONS = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}
_TRANSPOSED = {1: functional.conv_transpose1d, 2: functional.conv_transpose2d, 3: functional.conv_transpose3d}
_MAXIMA = {1: functional.max_pool1d, 2: functional.max_pool2d, 3: functional.max_pool3d}
_AVERAGES: dict[int, Any] = {1: functional.avg_pool1d, 2: functional.avg_pool2d, 3: functional.avg_pool3d}


@dataclass(frozen=True)
class _Window:
    """The window of a node; every tuple has one number for each axis of the positions."""

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    before: tuple[int, ...]
    after: tuple[int, ...]

    @classmethod
    def of(cls, call: OperatorCall, kernel: tuple[int, ...], positions: tuple[int, ...]) -> _Window:
        """The window of a convolution or a pooling over an input of these positions."""
        rank = len(kernel)
        strides = _tuple(call, "strides", rank, 1)
        dilations = _tuple(call, "dilations", rank, 1)
        pads = _tuple(call, "pads", 2 * rank, 0)
        spans = tuple((k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True))
        auto = call.attribute("auto_pad", "NOTSET")
        if auto in ("SAME_UPPER", "SAME_LOWER"):
            totals = [
                max((math.ceil(n / s) - 1) * s + span - n, 0)
                for n, s, span in zip(positions, strides, spans, strict=True)
            ]
            pads = _split_pads(totals, auto)
        elif auto == "VALID":
            pads = (0,) * (2 * rank)
        return cls(kernel, strides, dilations, pads[:rank], pads[rank:])

    def after_last(self, positions: tuple[int, ...], ceil_mode: bool) -> tuple[int, ...]:
        """The positions that ceil_mode adds after the padding; a window must start inside the input or before it."""
        if not ceil_mode:
            return (0,) * len(positions)
        extra = []
        for n, k, s, d, before, after in zip(
            positions, self.kernel, self.strides, self.dilations, self.before, self.after, strict=True
        ):
            span = (k - 1) * d + 1
            last = math.ceil((n + before + after - span) / s)  # the index of the last window
            if last * s >= n + before:
                last -= 1
            extra.append(max(last * s + span - (n + before + after), 0))
        return tuple(extra)


def _tuple(call: OperatorCall, name: str, length: int, default: int) -> tuple[int, ...]:
    """An attribute of whole numbers."""
    return tuple(int(value) for value in call.attribute(name, [default] * length))


def _split_pads(totals: list[int], auto: str) -> tuple[int, ...]:
    """Padding before and after each axis; SAME_UPPER puts the odd one after it."""
    small, large = tuple(total // 2 for total in totals), tuple(total - total // 2 for total in totals)
    return small + large if auto == "SAME_UPPER" else large + small


def _pad(x: torch.Tensor, before: tuple[int, ...], after: tuple[int, ...], value: float = 0.0) -> torch.Tensor:
    """Pads the last axes; negative numbers cut."""
    if not any(before) and not any(after):
        return x
    # torch lists the pads from the last axis on
    pads = list(chain.from_iterable(zip(reversed(before), reversed(after), strict=True)))
    return functional.pad(x, pads, value=value)


def _convolution(call: OperatorCall) -> torch.Tensor:
    x, weight = call[0], call[1]  # (N, C, *positions), (C_out, C / groups, *kernel)
    window = _Window.of(call, tuple(weight.shape[2:]), tuple(x.shape[2:]))
    padding: tuple[int, ...] = window.before
    if window.before != window.after:
        x, padding = _pad(x, window.before, window.after), (0,) * len(window.kernel)
    groups = int(call.attribute("group", 1))
    convolve: Any = _CONVOLUTIONS[len(window.kernel)]
    y: torch.Tensor = convolve(x, weight, call.optional(2), window.strides, padding, window.dilations, groups)
    return y


def _transposed_convolution(call: OperatorCall) -> torch.Tensor:
    """The full result, cut at the pads and lengthened by the output padding."""
    x, weight = call[0], call[1]  # (N, C, *positions), (C, C_out / groups, *kernel)
    kernel, rank = tuple(weight.shape[2:]), weight.dim() - 2
    strides, dilations = _tuple(call, "strides", rank, 1), _tuple(call, "dilations", rank, 1)
    longer = _tuple(call, "output_padding", rank, 0)
    pads = _tuple(call, "pads", 2 * rank, 0)
    auto = call.attribute("auto_pad", "NOTSET")
    if auto in ("SAME_UPPER", "SAME_LOWER"):
        sizes = zip(kernel, strides, dilations, longer, strict=True)
        pads = _split_pads([max((k - 1) * d + 1 + more - s, 0) for k, s, d, more in sizes], auto)
    elif auto == "VALID":
        pads = (0,) * (2 * rank)
    transpose: Any = _TRANSPOSED[rank]
    y = transpose(x, weight, None, strides, 0, 0, int(call.attribute("group", 1)), dilations)
    cut = tuple(-pad for pad in pads[:rank]), tuple(more - pad for more, pad in zip(longer, pads[rank:], strict=True))
    y = _pad(y, *cut)
    bias = call.optional(2)
    return y if bias is None else y + bias.reshape(along(0, rank + 1))


def _max_pool(call: OperatorCall) -> torch.Tensor:
    x = call[0]
    window, extra = _pooling(call)
    after = tuple(a + e for a, e in zip(window.after, extra, strict=True))
    pool: Any = _MAXIMA[len(window.kernel)]
    padded = _pad(x, window.before, after, -math.inf)
    y: torch.Tensor = pool(padded, window.kernel, window.strides, 0, window.dilations)
    return y


def _average_pool(call: OperatorCall) -> torch.Tensor:
    """The mean over what counts: the sum over the padded input over the sum over a mask of ones."""
    x = call[0]
    window, extra = _pooling(call)
    pool = _AVERAGES[len(window.kernel)]
    if not any((*window.before, *window.after, *extra)):
        y: torch.Tensor = pool(x, window.kernel, window.strides)
        return y
    counted = torch.ones_like(x[:1, :1])
    padding_counts = float(call.attribute("count_include_pad", 0))
    counted = _pad(counted, window.before, window.after, padding_counts)
    none = (0,) * len(extra)
    sums = pool(_pad(_pad(x, window.before, window.after), none, extra), window.kernel, window.strides)
    mean: torch.Tensor = sums / pool(_pad(counted, none, extra), window.kernel, window.strides)
    return mean


def _pooling(call: OperatorCall) -> tuple[_Window, tuple[int, ...]]:
    """The window of a pooling, and the positions that ceil_mode adds after it."""
    positions = tuple(call[0].shape[2:])
    window = _Window.of(call, tuple(int(side) for side in call.attribute("kernel_shape")), positions)
    return window, window.after_last(positions, bool(call.attribute("ceil_mode", 0)))


def _global_average(call: OperatorCall) -> torch.Tensor:
    return call[0].mean(list(range(2, call[0].dim())), keepdim=True)


def _global_maximum(call: OperatorCall) -> torch.Tensor:
    return call[0].amax(list(range(2, call[0].dim())), keepdim=True)


def _refuse_output_shape(node: gs.Node, opset: int) -> str | None:
    """Runtimes disagree about where an output shape cuts."""
    return "its output_shape is not supported" if node.attrs.get("output_shape") else None


def _refuse_dilations(node: gs.Node, opset: int) -> str | None:
    """torch has no average over a dilated window."""
    dilations = node.attrs.get("dilations") or [1]
    return None if set(dilations) == {1} else f"dilations = {list(dilations)} is not supported"


WINDOWS: Mapping[str, Operator] = {
    "Conv": Operator(_convolution),
    "ConvTranspose": Operator(_transposed_convolution, _refuse_output_shape),
    "MaxPool": Operator(_max_pool, only("storage_order", 0)),
    "AveragePool": Operator(_average_pool, _refuse_dilations),
    "GlobalAveragePool": Operator(_global_average),
    "GlobalMaxPool": Operator(_global_maximum),
}
