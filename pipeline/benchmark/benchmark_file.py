"""A benchmark read back from the JSON that `vsfix benchmark --json` wrote."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vsfix.graph_passes.errors import InputError
from vsfix.graph_passes.io.named_file import why_unreadable
from vsfix.graph_passes.progress import stage
from vsfix.pipeline.comparison.metric import METRICS
from vsfix.pipeline.host.console import SCHEMA_VERSION

_LARGEST = 1 << 26  # bytes; a row takes some thousand
Key = tuple[str, str, str]
HARDWARE = ("machine", "CPU", "GPU")
OWN_METRIC = "metric"
_BEFORE_METRICS = {"key": "top1", "output": ""}


@dataclass(frozen=True)
class BenchmarkFile:
    """The numbers that two runs are compared by.

    Attributes:
        path: the file.
        data: the labelled set and its part, in words.
        samples: how many.
        digest: of the samples and their labels.
        metric: the key of the metric, and the output that it judges, None where it has all; None without labels. A
            file from before there were metrics has top-1 of an output that it does not name, an empty text.
        hardware: what it ran on, by the labels of `HARDWARE` as far as the file has them.
        rows: the values of each row by the name of its model file, backend and precision; by the path as it was named
            where two files of the run have one name. A value is a number in the unit of its metric, an SNR infinite
            where the row is exact and minus infinity where it is not finite, or None where the row has none.
        statuses: of the rows.
        intervals: of the numbers of a row that have one, by the same labels: of ratios.
        right: how many samples each row got right; no entry where it did not run, or has a metric that counts none.
        highest_cv: of the latencies: standard deviation over mean; 0 without any.
    """

    path: Path
    data: str
    samples: int
    digest: str
    metric: tuple[str, str | None] | None
    hardware: Mapping[str, str]
    rows: Mapping[Key, Mapping[str, float | None]]
    statuses: Mapping[Key, str]
    intervals: Mapping[Key, Mapping[str, tuple[float, float]]]
    right: Mapping[Key, int]
    highest_cv: float


@stage("reading a benchmark")
def read_benchmark(path: Path) -> BenchmarkFile:
    """Reads a file.

    Raises:
        InputError: it is not there, is no JSON, or not what `vsfix benchmark --json` of this version writes.
    """
    if (reason := why_unreadable(path, _LARGEST)) is not None:
        raise InputError(f"{path}: can't be read: {reason}")
    try:
        document = json.loads(path.read_text(encoding="utf-8"), parse_constant=_finite, parse_float=_finite)
    except OSError as error:
        raise InputError(f"{path}: can't be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: is not JSON; name a file that `vsfix benchmark --json` wrote") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: is not JSON: {error}") from error
    try:
        if document["schema_version"] != SCHEMA_VERSION:
            raise InputError(f"{path}: has schema version {document['schema_version']}; {SCHEMA_VERSION} can be read")
        rows = dict(zip(_keys(document["rows"]), document["rows"], strict=True))
        if len(rows) < len(document["rows"]):
            raise InputError(f"{path}: two of its rows have the same model, backend and precision")
        metric = _metric(document)
        name = "" if metric is None else label_of(metric[0])
        return BenchmarkFile(
            path=path,
            data=_text(document["data"]),
            samples=int(_number(document["samples"])),
            digest=_text(document["digest"]),
            metric=metric,
            hardware=_hardware(document["environment"]),
            rows={key: _values(row, name) for key, row in rows.items()},
            statuses={key: _text(row["status"]) for key, row in rows.items()},
            intervals={key: dict(_intervals(row)) for key, row in rows.items()},
            right={key: count for key, row in rows.items() if (count := _count(row)) is not None},
            highest_cv=max((_number(time["cv"]) for row in rows.values() for time in row["latencies"]), default=0.0),
        )
    except KeyError as error:
        raise InputError(f"{path}: is not what `vsfix benchmark --json` writes: it has no {error}") from error
    except (TypeError, ValueError, AttributeError, IndexError, OverflowError) as error:
        raise InputError(f"{path}: is not what `vsfix benchmark --json` writes: {error}") from error


def _keys(rows: Sequence[Mapping[str, Any]]) -> list[Key]:
    """The names of rows in another run; folders differ from machine to machine, and count where names don't."""
    shared = Counter(Path(model).name for model in {_text(row["model"]) for row in rows})
    names = [Path(row["model"]).name for row in rows]
    return [
        (name if shared[name] == 1 else row["model"], _text(row["backend"]), _text(row["precision"]))
        for name, row in zip(names, rows, strict=True)
    ]


def _metric(document: Mapping[str, Any]) -> tuple[str, str | None] | None:
    """The metric and its output; see `BenchmarkFile`."""
    found = document.get("metric", _BEFORE_METRICS)
    if found is None:
        return None
    return _text(found["key"]), None if found["output"] is None else _text(found["output"])


def label_of(key: str) -> str:
    """What a metric is called among the numbers of a row: a function of the user's own is `metric`."""
    return key if key in METRICS else OWN_METRIC


def _values(row: Mapping[str, Any], name: str) -> dict[str, float | None]:
    """The numbers of a row: the metric of this name, shares in percent, SNR in dB, times in milliseconds."""
    own = row["against_own"]
    values: dict[str, float | None] = {}
    if name:
        values[name] = _percent(row["top1"] and row["top1"]["value"]) if "top1" in row else _score(row["score"])
    if own is not None:
        task = own["decisions"].get("task") if own["decisions"] is not None else None
        values["retention"] = _percent(own["retention"] if task is None else task["retention"])
        values["agreement"] = None if own["decisions"] is None else _percent(own["decisions"]["agreement"])
        values["snr"] = min(map(_snr_db, own["outputs"].values()))
    for latency in row["latencies"]:
        batch = _batch(latency)
        if f"p50 {batch}" in values:
            raise ValueError(f"a row has {batch} twice")
        values[f"p50 {batch}"] = _amount(latency["p50_ms"])
        values[f"p99 {batch}"] = _amount(latency["p99_ms"])
        if not _is_baseline(latency):
            values[f"ratio {batch}"] = _amount(latency["ratio"])
    values["size"] = _amount(row["size"]) or None
    return values


def _score(score: Mapping[str, Any] | None) -> float | None:
    """The metric of a row; where it is not finite the worst there is, which JSON can't hold."""
    if score is None:
        return None
    if score["value"] is None:
        return math.inf if score["is_loss"] else -math.inf
    return _number(score["value"])


def _count(row: Mapping[str, Any]) -> int | None:
    """How many samples a row got right; None where its metric counts none."""
    found = row["top1"] if "top1" in row else row["score"]
    return None if found is None or found["count"] is None else int(_number(found["count"]))


def _intervals(row: Mapping[str, Any]) -> Iterator[tuple[str, tuple[float, float]]]:
    """The intervals of the ratios of a row, by their labels."""
    for latency in row["latencies"]:
        if not _is_baseline(latency):
            low, high = map(_number, latency["ratio_interval"])
            yield f"ratio {_batch(latency)}", (low, high)


def _is_baseline(latency: Mapping[str, Any]) -> bool:
    """Whether a latency is what others are held against: its ratio to itself is 1 and nothing else."""
    said = latency.get("is_baseline", latency["ratio_interval"] == [1, 1])  # which older files leave to be guessed
    return bool(said)


def _batch(latency: Mapping[str, Any]) -> str:
    """The batch size of a latency, and whether it is that of a CUDA graph."""
    graph = {None: "", True: ", graph", False: ", no graph"}[latency["cuda_graph"]]
    return f"batch {latency['batch_size']}{graph}"


def _hardware(environment: Mapping[str, Any]) -> dict[str, str]:
    """The machine and the versions of a run; the machine is always there."""
    _text(environment["machine"])
    return {label: _text(environment[label]) for label in HARDWARE if label in environment}


def _snr_db(output: Mapping[str, Any]) -> float:
    """The SNR of an output; JSON has no infinity, and the largest error says which one a null stands for."""
    if output["snr_db"] is not None:
        return _number(output["snr_db"])
    return math.inf if output["max_abs"] == 0 else -math.inf


def _percent(value: Any) -> float | None:
    """A share in percent."""
    return None if value is None else 100 * _number(value)


def _number(value: Any) -> float:
    """A number, and not a text of one."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{value!r} is no number")
    return float(value)


def _amount(value: Any) -> float:
    """A number that is not negative: less than nothing would compare as better than anything."""
    number = _number(value)
    if number < 0:
        raise ValueError(f"{value!r} is negative")
    return number


def _text(value: Any) -> str:
    """A text that can be printed."""
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is no text")
    value.encode()
    return value


def _finite(text: str) -> float:
    """A number as the file writes it: NaN and infinities compare as better than anything."""
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text} is no number of JSON")
    return number
