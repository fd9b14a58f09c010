"""The shapes that an engine is built for: a smallest, a usual and a largest one for each input with a dynamic axis.

Written as trtexec takes them, `x:1x3x32x32`, or as Polygraphy does, `x:[1,3,32,32]`; commas stand between inputs.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import onnx

from vsfix.graph_passes.errors import InputError

Shape = tuple[int, ...]
_ENTRY = re.compile(r"\s*(?P<name>[^,\s]+?)\s*:\s*(?P<sides>\[[\d,\s]*\]|\d+(?:x\d+)*)\s*(?:,|$)")
LARGEST_SIDE = 2**31 - 1  # TensorRT's own


@dataclass(frozen=True)
class ShapeOptions:
    """The shapes that the user gave, as text; None for what was not given.

    Attributes:
        shapes: stands for each of the others that is not given.
        minimum: the smallest shapes.
        optimum: the shapes that the engine is tuned for.
        maximum: the largest shapes.
    """

    shapes: str | None = None
    minimum: str | None = None
    optimum: str | None = None
    maximum: str | None = None


@dataclass(frozen=True)
class ShapeRange:
    """The shapes of one input, all of the same rank, no side larger in one than in the next."""

    minimum: Shape
    optimum: Shape
    maximum: Shape

    @property
    def is_fixed(self) -> bool:
        """Whether there is only one shape."""
        return self.minimum == self.maximum

    def __str__(self) -> str:
        """`1x3x32x32`, or the three with dots between."""
        texts = ["x".join(map(str, shape)) for shape in (self.minimum, self.optimum, self.maximum)]
        return texts[0] if self.is_fixed else " .. ".join(texts)


def parse_shapes(text: str) -> dict[str, Shape]:
    """Reads shapes by input name.

    Raises:
        InputError: quotes what can't be read.
    """
    found: dict[str, Shape] = {}
    position = 0
    while position < len(text):
        match = _ENTRY.match(text, position)
        if match is None:
            raise InputError(f"shapes '{text[position:]}': write NAME:1x3x32x32, several with commas between")
        sides = tuple(int(side) for side in re.findall(r"\d+", match["sides"]))
        if not all(1 <= side <= LARGEST_SIDE for side in sides):
            raise InputError(f"shapes '{match[0].strip()}': every side must be at least 1 and below 2^31")
        if match["name"] in found:
            raise InputError(f"shapes '{text}': input '{match['name']}' is given twice")
        found[match["name"]] = sides
        position = match.end()
    if not found:
        raise InputError("shapes '': write NAME:1x3x32x32")
    return found


def resolve_profile(model: onnx.ModelProto, options: ShapeOptions) -> dict[str, ShapeRange]:
    """The shapes that each input of a model is built for.

    An input without a dynamic axis needs nothing; of the others, what is not given is taken from `shapes`, then the
    smallest and the largest from the optimum, and the optimum from the largest.

    Args:
        model: the model, for the names and the fixed sides of its inputs.
        options: what was given.

    Returns:
        A range for every input of the model, in its order.

    Raises:
        InputError: a dynamic axis without a shape, or shapes that do not fit the model or each other.
    """
    given = [
        {} if text is None else parse_shapes(text)
        for text in (options.minimum, options.optimum, options.maximum, options.shapes)
    ]
    stated = _stated_shapes(model)
    unknown = [name for shapes in given for name in shapes if name not in stated]
    if unknown:
        raise InputError(f"shapes: the model has no input '{unknown[0]}'; it takes {', '.join(stated) or 'none'}")
    return {name: _resolve(name, sides, given) for name, sides in stated.items()}


def _resolve(name: str, sides: tuple[int | str, ...] | None, given: list[dict[str, Shape]]) -> ShapeRange:
    """The range of one input."""
    low, best, high, any_of_them = (shapes.get(name) for shapes in given)
    best = best or any_of_them or high or low
    if best is None:
        if sides is None or any(isinstance(side, str) for side in sides):
            raise InputError(_missing(name, sides))
        best = tuple(side for side in sides if isinstance(side, int))
    found = ShapeRange(low or any_of_them or best, best, high or any_of_them or best)
    _check(name, sides, found)
    return found


def _check(name: str, sides: tuple[int | str, ...] | None, found: ShapeRange) -> None:
    """Refuses shapes that do not fit the model or each other."""
    for shape in (found.minimum, found.optimum, found.maximum):
        fits = sides is None or (
            len(sides) == len(shape)
            and all(isinstance(side, str) or side == n for side, n in zip(sides, shape, strict=True))
        )
        if not fits:
            raise InputError(f"shapes: input '{name}' is {_text(sides)} in the model, {_text(shape)} was given")
    ordered = len(found.minimum) == len(found.optimum) == len(found.maximum) and all(
        low <= best <= high for low, best, high in zip(found.minimum, found.optimum, found.maximum, strict=True)
    )
    if not ordered:
        raise InputError(f"shapes: input '{name}': {found} do not grow from the smallest to the largest")


def _missing(name: str, sides: tuple[int | str, ...] | None) -> str:
    """The error where the shape of an input is unknown."""
    if sides is None:
        return f"input '{name}' has no shape in the model; pass --shapes {name}:..., with every side of it"
    axes = [f"{axis} ({side})" if side else str(axis) for axis, side in enumerate(sides) if isinstance(side, str)]
    example = "x".join("1" if isinstance(side, str) else str(side) for side in sides)
    return f"input '{name}' has no fixed size on axis {', '.join(axes)}; pass --shapes {name}:{example} or another size"


def _stated_shapes(model: onnx.ModelProto) -> Mapping[str, tuple[int | str, ...] | None]:
    """The shape that the model states for each input: numbers, or names of dynamic axes; None where it states none."""
    weights = {tensor.name for tensor in model.graph.initializer}
    found: dict[str, tuple[int | str, ...] | None] = {}
    for value in model.graph.input:
        if value.name not in weights:
            tensor = value.type.tensor_type
            dims = tensor.shape.dim if tensor.HasField("shape") else None
            found[value.name] = None if dims is None else tuple(_side(dim) for dim in dims)
    return found


def _side(dim: onnx.TensorShapeProto.Dimension) -> int | str:
    """A fixed side as a number, a dynamic one by its name."""
    return dim.dim_value if dim.HasField("dim_value") and dim.dim_value > 0 else dim.dim_param


def _text(sides: tuple[int | str, ...] | None) -> str:
    """A shape in a message."""
    return "of any shape" if sides is None else f"({', '.join(str(side) or '?' for side in sides)})"
