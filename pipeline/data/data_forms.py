"""The forms in which Python gives data, and the samples that they hold.

a text, a path   what `--data` takes (see `load_samples`)
an array         the input of a model that has one, shape (N, ...): numpy, torch on any device, whatever numpy reads
a data frame     of pandas or polars: its columns are the inputs (see `tables`)
a dict           an array for each input, by its name, and optionally `labels` and other targets
a tuple          the inputs in the order of the model, or one dict or frame of them, and after them optionally labels
anything else    batches, each in one of the four forms above: a list, a generator, a DataLoader

Batches are read in their order and no further than wanted, so that a generator need not end. A DataLoader that would
read its data set from the first row on is read in a random order: sets of images are ordered by class.
Where no labels are wanted, what stands after the inputs is not looked at, whatever it is: masks, boxes, texts.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeAlias, cast

import numpy as np

from vsfix.graph_passes.errors import DataError, InputError, VsfixError, first_line
from vsfix.graph_passes.io.named_file import call_named_function, current_folder_importable, names_function
from vsfix.graph_passes.ir.runtime import Array
from vsfix.graph_passes.measurement.activation_cache import DEFAULT_MAX_MEMORY
from vsfix.graph_passes.statistics.batches import join_batches, samples_in
from vsfix.trainers.data.datasets import NAMES
from vsfix.trainers.data.loader_order import seeded_batches

from .fitting import ModelInput, Normalization
from .samples import LABELS, Samples, other_targets, require_one_length
from .tables import is_frame, read_frame, table_file

_ARRAY, _ARRAYS, _FRAME, _BATCHES = "data (an array)", "data (arrays)", "data (a frame)", "data (batches)"
_logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class GivenData:
    """Data with what a person says of it, which goes wherever data goes.

    Attributes:
        data: in any form.
        normalization: of its images, for a model that does not say it.
        notes: what was found while it was read, each once, as that it was cast.
    """

    data: Any
    normalization: Normalization = field(default_factory=Normalization)
    notes: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, data: Data) -> GivenData:
        """Data of which nothing is said; itself where it says something."""
        return data if isinstance(data, GivenData) else cls(data)

    def note(self, text: str) -> None:
        """Keeps a note, and shows it in the log, once."""
        if text not in self.notes:
            self.notes.append(text)
            _logger.warning("%s", text)


Data: TypeAlias = str | Path | Mapping[str, Any] | Iterable[Any] | GivenData


def data_text(data: Data | None) -> str | None:
    """The text that `--data` would take for the same; None for data that is in memory, and where there is none."""
    data = data.data if isinstance(data, GivenData) else data
    return str(data) if isinstance(data, str | Path) else None


def is_named_set(data: Data | None) -> bool:
    """Whether it is a named data set, which has a training part and a test part."""
    text = data_text(data)
    return text is not None and not text.endswith((".npz", ".npy")) and table_file(text) is None and not is_code(text)


def is_code(text: str) -> bool:
    """Whether a text names a function that gives the data, `package.module:function`, and no data set."""
    return names_function(text) and text.partition(":")[0] not in NAMES


def read_data(
    data: Data,
    input_names: Sequence[str],
    *,
    samples: int | None,
    seed: int,
    at_most: bool = False,
    max_memory: int | None = None,
    labelled: bool = True,
    inputs: Sequence[ModelInput] = (),
    note: Callable[[str], None] | None = None,
) -> Samples:
    """Reads data that is no text.

    Args:
        data: see the head of this module.
        input_names: the inputs of the model, in its order.
        samples: how many to choose at random from arrays, or to draw from batches; None takes all, in their order.
        seed: of the choice, and of the order of what was drawn.
        at_most: fewer than `samples` are as good, and no warning.
        max_memory: the most bytes that are drawn from batches; None for the usual limit.
        labelled: read the labels where there are some; else they are not looked at.
        inputs: what the model says of its inputs; empty where nothing is known.
        note: takes what a person should know, as the columns of a frame that are left out.

    Raises:
        InputError: data in no form that is read.
        DataError: no sample, other arrays than the model needs, different lengths, or values that are not finite; the
            data set or the generator raises an error.
    """
    wanted = replace(_Wanted.of(input_names, labelled, inputs), note=note)
    if not _is_one_batch(data):
        arrays, targets = _draw(data, wanted, samples, seed, max_memory or DEFAULT_MAX_MEMORY)
        name = _BATCHES
    else:
        name = _FRAME if is_frame(data) else _ARRAY if _is_array(data) else _ARRAYS
        arrays, targets = _split(data, wanted, name)
    whole = {**arrays, **targets}
    require_one_length(name, {key: len(array) if array.ndim else 0 for key, array in whole.items()})
    found = Samples(name, arrays, targets.pop(LABELS, None), targets=targets)
    total = len(found)
    return found.subset(min(samples, total) if at_most and samples is not None else samples, seed=seed)


def read_code(source: str, input_names: Sequence[str], **options: Any) -> Samples:
    """Reads what a function of the user gives; see `read_data`. This runs the code of its module.

    Args:
        source: `package.module:function`; it is called without arguments.
        input_names: the inputs of the model.
        options: those of `read_data`.

    Raises:
        InputError: it can't be imported or called; also see `read_data`.
        DataError: see `read_data`.
    """
    with current_folder_importable():  # a generator runs on while it is read
        found = read_data(_called(source), input_names, **options)
    return replace(found, name=source)


def hold_data(
    data: Data, input_names: Sequence[str], samples: int, seed: int, inputs: Sequence[ModelInput] = ()
) -> Data:
    """This data, without labels, in a form that can be read several times: what is drawn from batches is stored.

    Args:
        data: as `read_data` takes it, or a text.
        input_names: the inputs of the model.
        samples: the most that will be wanted.
        seed: with which `read_data` will read it.
        inputs: what the model says of its inputs.

    Raises:
        InputError, DataError: see `read_data`.
    """
    if isinstance(data, GivenData):
        return replace(data, data=hold_data(data.data, input_names, samples, seed, inputs))
    text = data_text(data)
    if (text is not None and not is_code(text)) or _is_one_batch(data):
        return data
    with current_folder_importable():
        given = data if text is None else _called(text)
        if _is_one_batch(given):
            return cast("Data", given)
        wanted = _Wanted.of(input_names, labelled=False, inputs=inputs)
        arrays, _ = _draw(given, wanted, samples, seed, DEFAULT_MAX_MEMORY)
    return [(arrays,)]


def _called(source: str) -> Any:
    """What a function of the user gives."""
    given = call_named_function(source)
    if isinstance(given, str | Path | GivenData):
        raise InputError(f"{source}: gives a {type(given).__name__}; it must give arrays, or batches of them")
    return given


@dataclass(frozen=True)
class _Wanted:
    """The arrays that are read of a batch: the inputs of the model in its order, and whether there may be labels.

    The columns of a table that the only input takes are `width`, None for any number.
    """

    names: Sequence[str]
    labelled: bool
    width: int | None = None
    note: Callable[[str], None] | None = None

    @classmethod
    def of(cls, names: Sequence[str], labelled: bool, inputs: Sequence[ModelInput]) -> _Wanted:
        return cls(names, labelled, inputs[0].width if len(inputs) == 1 else None)


def _is_array(data: object) -> bool:
    """Whether numpy reads it as one array."""
    return hasattr(data, "__array__")


def _is_one_batch(data: object) -> bool:
    """Whether it holds all samples at once."""
    return isinstance(data, Mapping | tuple) or _is_array(data) or is_frame(data)


def _draw(
    data: Data, wanted: _Wanted, samples: int | None, seed: int, max_memory: int
) -> tuple[dict[str, Array], dict[str, Array]]:
    """The inputs, and the labels and other targets, of as many batches as hold so many samples."""
    drawn: list[dict[str, Array]] = []
    total = held = 0
    for number, batch in enumerate(_batches(data, seed)):
        inputs, targets = _split(batch, wanted, f"{_BATCHES}: batch {number}")
        arrays = {**inputs, **targets}
        if drawn and set(arrays) != set(drawn[0]):
            raise DataError(f"{_BATCHES}: batch {number} has other arrays than the first; labels in all, or in none")
        drawn.append(arrays)
        total += samples_in(inputs)
        held += sum(array.nbytes for array in arrays.values())
        if samples is not None and total >= samples:
            break
        if held > max_memory:
            raise DataError(f"{_BATCHES}: {total} samples take {held >> 20} MiB, and there are more; give samples=N")
    if not drawn:
        raise DataError(f"{_BATCHES}: there is none; a generator that was read to its end gives nothing more")
    try:
        joined = dict(join_batches(drawn))
    except ValueError as error:
        raise DataError(f"{_BATCHES}: their arrays differ in shape ({first_line(error)})") from error
    kept = {name: array[:samples] for name, array in joined.items()}
    return {name: kept.pop(name) for name in wanted.names}, kept


def _batches(data: Data, seed: int) -> Iterator[Any]:
    """The batches of the data, one after the other; errors of the user's code become one line."""
    if not isinstance(data, Iterable) and not hasattr(data, "__getitem__"):
        raise InputError(
            f"data: a {type(data).__name__} is not read; give a text as --data takes it, an array, a dict of arrays, "
            "or an iterable of batches"
        )
    number = 0
    try:
        for batch in seeded_batches(cast("Iterable[Any]", data), seed):
            yield batch
            number += 1
    except VsfixError:
        raise
    except Exception as error:  # of a data set, a collate function or a generator: there is no class for those
        raise DataError(
            f"{_BATCHES}: the data fails at batch {number}: {type(error).__name__} {first_line(error)}"
        ) from error


def _split(batch: object, wanted: _Wanted, what: str) -> tuple[dict[str, Array], dict[str, Array]]:
    """The inputs of one batch, and its labels and other targets."""
    names, targets = wanted.names, dict[str, Array]()
    listed = ", ".join(names)
    given: dict[str, Any]
    rest: tuple[Any, ...] = ()
    if is_frame(batch):
        table = read_frame(batch, what)
        label = table.label_column(None)
        given = {**table.inputs(names, label, wanted.width)}
        if wanted.note is not None and (left := table.left_out(names, label)) is not None:
            wanted.note(left)
        if wanted.labelled and label is not None:
            rest = (table.labels(label),)
    elif isinstance(batch, Mapping):
        missing = next((name for name in names if name not in batch), None)
        if missing is not None:
            found = ", ".join(map(str, batch)) or "nothing"
            raise DataError(f"{what}: has no array '{missing}', which the model needs; it holds {found}")
        given = {name: batch[name] for name in names}
        if LABELS in batch and LABELS not in names:
            rest = (batch[LABELS],)
        if wanted.labelled:
            rows = len(_read_array(given[names[0]], f"{what}: array '{names[0]}'"))
            targets = other_targets(batch, names, rows, _read_array)
    elif isinstance(batch, tuple | list):
        if batch and (isinstance(batch[0], Mapping) or is_frame(batch[0])):
            own = replace(wanted, labelled=False) if is_frame(batch[0]) and len(batch) > 1 else wanted
            given, targets = _split(batch[0], own, what)
            rest = tuple(batch[1:]) or ((targets[LABELS],) if LABELS in targets else ())
        else:
            given, rest = dict(zip(names, batch, strict=False)), tuple(batch[len(names) :])
        if len(given) < len(names) or (len(rest) > 1 and wanted.labelled):
            raise DataError(f"{what}: holds {len(batch)} arrays; give the inputs ({listed}), and after them the labels")
    elif _is_array(batch):
        if len(names) != 1:
            raise DataError(f"{what}: is one array, and the model has the inputs {listed}; give a dict of arrays")
        given = {names[0]: batch}
    else:
        raise DataError(f"{what}: is a {type(batch).__name__}; give an array, a dict of arrays, or (inputs, labels)")
    arrays = {name: _read_array(value, f"{what}: array '{name}'") for name, value in given.items()}
    is_read = rest and (wanted.labelled or _is_number(rest[0]))  # with one number this is a sample, and no batch
    return arrays, targets | ({LABELS: _read_array(rest[0], f"{what}: labels")} if is_read else {})


def _is_number(value: object) -> bool:
    """Whether it is one number, also as an array without axes."""
    return isinstance(value, int | float) or (_is_array(value) and getattr(value, "ndim", 1) == 0)


def _read_array(value: Any, what: str) -> Array:
    """An array of numpy in the byte order of the machine; without a copy where there is one already."""
    if hasattr(value, "detach"):  # a tensor of torch
        value = value.detach().cpu()
    if isinstance(value, np.ma.MaskedArray) and np.ma.is_masked(value):
        raise DataError(f"{what}: has {int(np.sum(value.mask))} masked values; fill them in, or leave the rows out")
    try:
        array = np.asarray(value)
    except (TypeError, ValueError, RuntimeError) as error:  # ragged lists, and types that numpy has not
        raise DataError(f"{what}: can't be read as an array ({first_line(error)})") from error
    if array.ndim == 0:
        raise DataError(f"{what} is a single number; the batch axis comes first: give batches, as a DataLoader does")
    return array.astype(array.dtype.newbyteorder("="), copy=False)
