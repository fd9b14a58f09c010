"""Models and options as Python gives them, brought to what the rooms below take; what can't be is one clear line."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from numbers import Integral, Real
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeAlias

import onnx

from vsfix.graph_passes.errors import InputError, VsfixError
from vsfix.graph_passes.io.external_data import fits_one_file
from vsfix.graph_passes.io.model_file import read_model
from vsfix.graph_passes.io.named_file import user_path
from vsfix.pipeline.backends.opening import checkpoint_file
from vsfix.pipeline.data.data_forms import Data, GivenData
from vsfix.pipeline.data.fitting import Normalization
from vsfix.pipeline.host.output_file import data_files

Model: TypeAlias = str | Path | onnx.ModelProto
IN_MEMORY = "the model in memory"
Numbers: TypeAlias = float | Sequence[float]
_UNITS = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
_LARGEST_SEED = 2**63 - 1  # what torch takes


def load_model(model: Model) -> onnx.ModelProto:
    """The model, checked in full.

    Args:
        model: the path of an ONNX file, or what onnx makes of one.

    Raises:
        InputError: neither of both.
        ModelError: see `read_model`.
    """
    with model_file(model) as path:
        return read_model(path)


def model_path(model: Model) -> Path | None:
    """Where the model stands; None for one in memory."""
    return user_path(str(model)) if isinstance(model, str | Path) else None


def model_name(model: Model) -> str:
    """The name of a model in messages: its path, or that it is in memory."""
    return IN_MEMORY if (path := model_path(model)) is None else str(path)


def files_read(models: Iterable[object], data: Iterable[object] = ()) -> tuple[Path, ...]:
    """The files among what was given.

    Args:
        models: models, folders of a training run, and other single files; those in memory and None are left out.
        data: data in any form.
    """
    paths = [checkpoint_file(user_path(str(model))) for model in models if isinstance(model, str | Path)]
    paths += [path for given in data if isinstance(given, str | Path) for path in data_files(str(given))]
    return tuple(path.absolute() for path in paths)


@contextmanager
def model_file(model: Model, name: str = "model") -> Iterator[Path]:
    """A file that holds the model: its own, or one that is gone at the end.

    Args:
        model: see `load_model`.
        name: of the file of a model in memory, without a suffix.

    Raises:
        InputError: no model, or one in memory that a file can't hold.
    """
    if (path := model_path(model)) is not None:
        yield path
        return
    if not isinstance(model, onnx.ModelProto):
        raise InputError(f"a {type(model).__name__} is no model; give the path of an ONNX file, or an onnx.ModelProto")
    if not fits_one_file(model):
        raise InputError(f"{IN_MEMORY} is larger than 2 GiB; write it to a file and give its path")
    with TemporaryDirectory(prefix="vsfix-") as folder:
        path = Path(folder, f"{name}.onnx")
        onnx.save(model, path)
        try:
            yield path
        except VsfixError as error:  # nobody knows that file
            error.args = tuple(str(part).replace(str(path), IN_MEMORY) for part in error.args)
            raise


def models_of(name: str, given: Model | Sequence[Model]) -> list[Model]:
    """One model or several.

    Raises:
        InputError: naming the option; neither of both.
    """
    if isinstance(given, Model):
        return [given]
    if isinstance(given, bytes | Mapping) or not isinstance(given, Iterable):
        raise InputError(f"{name}: a {type(given).__name__} is no model; give paths of files, or onnx.ModelProtos")
    return list(given)


def texts(name: str, value: str | Sequence[str]) -> tuple[str, ...]:
    """One text or several.

    Raises:
        InputError: naming the option; neither of both.
    """
    if isinstance(value, str):
        return (value,)
    if isinstance(value, Mapping) or not isinstance(value, Iterable):
        raise InputError(f"{name} {value!r}: give a text, or several in a list")
    found = tuple(value)
    for text in found:
        if not isinstance(text, str):
            raise InputError(f"{name}: {text!r} is no text")
    return found


def normalization_of(mean: Numbers | None, std: Numbers | None, size: int | Sequence[int] | None) -> Normalization:
    """What a person says of the images of the training.

    Args:
        mean: of pixels between 0 and 1, one number or one for each channel.
        std: likewise.
        size: height and width in pixels; one number for both.

    Raises:
        InputError: numbers that are none, or mean or std alone.
    """
    sides: tuple[int, ...] | None = None
    if size is not None:
        sides = whole_numbers("size", size if isinstance(size, Iterable) else (size, size))
        if len(sides) != 2:
            raise InputError(f"size {size!r}: give height and width in pixels, as (224, 224)")
    return Normalization(_numbers("mean", mean), _numbers("std", std), None if sides is None else (sides[0], sides[1]))


def given_data(data: Data | None, normalization: Normalization) -> GivenData | None:
    """Data with what a person says of it, which keeps what is found when it is read; None for none."""
    return None if data is None else replace(GivenData.of(data), normalization=normalization, notes=[])


def notes_of(*data: GivenData | None) -> tuple[str, ...]:
    """The notes on data that was read, each once."""
    return tuple(dict.fromkeys(note for given in data if given is not None for note in given.notes))


def _numbers(name: str, value: Numbers | None) -> tuple[float, ...] | None:
    """One number or several.

    Raises:
        InputError: neither of both.
    """
    if value is None:
        return None
    values: tuple[Any, ...] = tuple(value) if isinstance(value, Iterable) else (value,)
    if not all(isinstance(one, Real) and not isinstance(one, bool) for one in values):
        raise InputError(f"{name} {value!r}: give a number, or one for each channel, as (0.485, 0.456, 0.406)")
    return tuple(float(one) for one in values)


def parse_size(size: str | int, option: str) -> int:
    """Reads `512M`, `2G`, `1.5G` or a plain number of bytes.

    Raises:
        InputError: naming the option.
    """
    text = str(size)
    factor = _UNITS.get(text[-1:].upper(), 1)
    try:
        number = float(text[:-1] if factor > 1 else text)
    except ValueError:
        raise InputError(f"{option} '{text}': write a size as 512M or 2G") from None
    if not 0 <= number * factor < 1 << 60:
        raise InputError(f"{option} '{text}': out of range")
    return int(number * factor)


def run_numbers(samples: int | None, batch_size: int, seed: int) -> tuple[int | None, int, int]:
    """The numbers of a run as Python's own, whatever type of whole number they were.

    Args:
        samples: at least one; None where the number is open.
        batch_size: at least one.
        seed: from 0 up to 2^63 - 1.

    Raises:
        InputError: naming the first that is wrong.
    """
    return (
        None if samples is None else whole_number("samples", samples),
        whole_number("batch_size", batch_size),
        whole_number("seed", seed, least=0, most=_LARGEST_SEED),
    )


def whole_number(name: str, value: object, *, least: int = 1, most: int | None = None) -> int:
    """A whole number of Python's own type, also where it was one of numpy.

    Raises:
        InputError: another type, or out of range.
    """
    number = int(value) if isinstance(value, Integral) and not isinstance(value, bool) else None
    if number is None or number < least or (most is not None and number > most):
        raise InputError(f"{name} {value!r}: must be a whole number from {least} on")
    return number


def real_number(name: str, value: object) -> float:
    """A number as Python's own.

    Raises:
        InputError: no number.
    """
    if not isinstance(value, Real) or isinstance(value, bool):
        raise InputError(f"{name} {value!r}: give a number")
    return float(value)


def whole_numbers(name: str, values: object) -> tuple[int, ...]:
    """Several of them, each at least one, as the sides of a shape.

    Raises:
        InputError: also where it is no sequence.
    """
    if isinstance(values, str | Mapping) or not isinstance(values, Iterable):
        raise InputError(f"{name} {values!r}: give whole numbers, as (3, 32, 32)")
    return tuple(whole_number(name, value) for value in values)


def require_texts(**options: object) -> None:
    """Refuses options that are no text.

    Raises:
        InputError: naming the first.
    """
    for name, value in options.items():
        if not isinstance(value, str):
            raise InputError(f"{name} {value!r}: give one text")


def require_split(name: str, split: object) -> None:
    """Refuses a part that no data set has.

    Raises:
        InputError: naming the option.
    """
    if split not in ("train", "test"):
        raise InputError(f"{name} {split!r}: choose train or test")


def require_output_kinds(output_kinds: object) -> None:
    """Refuses what is no mapping from the names of outputs to texts.

    Raises:
        InputError: it is something else.
    """
    if output_kinds is not None and not isinstance(output_kinds, Mapping):
        raise InputError(f"output_kinds {output_kinds!r}: give a dict, as {{'output': 'classes'}}")
