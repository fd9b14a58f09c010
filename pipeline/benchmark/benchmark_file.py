"""A benchmark read back from the JSON that `vsfix benchmark --json` wrote."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vsfix.graph_passes.errors import InputError
from vsfix.pipeline.console import SCHEMA_VERSION

Key = tuple[str, str, str]


@dataclass(frozen=True)
class BenchmarkFile:
    """What two runs are compared by.

    Attributes:
        path: the file.
        data: the labelled set and its part, in words.
        samples: how many.
        digest: of the samples and their labels.
        machine: what it ran on.
        rows: the values of each row by the name of its model file, backend and precision. A value is a number in the
            unit of its metric, or None where the row has none.
        statuses: of the rows.
    """

    path: Path
    data: str
    samples: int
    digest: str
    machine: str
    rows: Mapping[Key, Mapping[str, float | None]]
    statuses: Mapping[Key, str]


def read_benchmark(path: Path) -> BenchmarkFile:
    """Reads a file.

    Raises:
        InputError: it is not there, is no JSON, or not what `vsfix benchmark --json` of this version writes.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: can't be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: is not JSON: {error}") from error
    try:
        if document["schema_version"] != SCHEMA_VERSION:
            raise InputError(f"{path}: has schema version {document['schema_version']}; {SCHEMA_VERSION} can be read")
        rows = {_key(row): row for row in document["rows"]}
        if len(rows) < len(document["rows"]):
            raise InputError(f"{path}: two of its rows have the same model, backend and precision")
        return BenchmarkFile(
            path=path,
            data=str(document["data"]),
            samples=int(document["samples"]),
            digest=str(document["digest"]),
            machine=str(document["environment"]["machine"]),
            rows={key: _values(row) for key, row in rows.items()},
            statuses={key: str(row["status"]) for key, row in rows.items()},
        )
    except KeyError as error:
        raise InputError(f"{path}: is not what `vsfix benchmark --json` writes: it has no {error}") from error
    except (TypeError, ValueError, AttributeError, IndexError) as error:
        raise InputError(f"{path}: is not what `vsfix benchmark --json` writes: {error}") from error


def _key(row: Mapping[str, Any]) -> Key:
    """What a row is known by in another run; folders differ from machine to machine."""
    return (Path(str(row["model"])).name, str(row["backend"]), str(row["precision"]))


def _values(row: Mapping[str, Any]) -> dict[str, float | None]:
    """The numbers of a row: shares in percent, SNR in dB, times in milliseconds."""
    own = row["against_own"]
    values: dict[str, float | None] = {"top1": _percent(row["top1"] and row["top1"]["value"])}
    if own is not None:
        snrs = [output["snr_db"] for output in own["outputs"].values()]
        values["retention"] = _percent(own["decisions"]["task"]["retention"])
        values["agreement"] = _percent(own["decisions"]["agreement"])
        values["snr"] = min((float(snr) for snr in snrs if snr is not None), default=None)
    for latency in row["latencies"]:
        graph = {None: "", True: ", graph", False: ", no graph"}[latency["cuda_graph"]]
        batch = f"batch {latency['batch_size']}{graph}"
        values[f"p50 {batch}"] = float(latency["p50_ms"])
        values[f"p99 {batch}"] = float(latency["p99_ms"])
    values["size"] = float(row["size"]) or None
    return values


def _percent(value: Any) -> float | None:
    """A share in percent."""
    return None if value is None else 100 * float(value)
