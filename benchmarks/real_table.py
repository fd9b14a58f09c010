"""The results as Markdown: what vsfix says of each network, and what the task is worth after each repair."""

from __future__ import annotations

import math
from collections.abc import Sequence

from real_measure import AS_TRAINED, AVERAGE, DEFAULT, MATCHED, REFINED, UNTOLD, Row

_WAYS = (AS_TRAINED, DEFAULT, UNTOLD, MATCHED, REFINED, "exact", AVERAGE)


def table(rows: Sequence[Row]) -> str:
    """Three tables: what is said, what the task is worth, and whether the files hold."""
    return "\n\n".join([_said(rows), _worth(rows), _held(rows)])


def harmed(rows: Sequence[Row]) -> list[str]:
    """Networks that the default makes worse beyond the 95 % interval of the paired difference, and by how much."""
    found = []
    for row in rows:
        for way in (DEFAULT, UNTOLD):
            differences = row["ways"].get(way, {}).get("differences", [])
            for (name, up, digits), difference in zip(row["metrics"], differences, strict=False):
                mean, low, high = difference
                rounding = 0.5 * 10**-digits  # a fold rounds; what no digit shows is no harm
                if (high if up else -low) < 0 and abs(mean) >= rounding:
                    told = f"{mean:+.{digits}f} ({low:+.{digits}f} to {high:+.{digits}f})"
                    found.append(f"{row['name']}, {way}: {name} {told}")
    return found


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _head(cells: Sequence[str]) -> list[str]:
    return [_line(cells), _line(["---"] * len(cells))]


def _said(rows: Sequence[Row]) -> str:
    lines = _head(["network", "weights", "noise", "BatchNorms reached", "R", "noise told", "noise not told"])
    for row in rows:
        told, untold = row["told"], row.get("untold")
        severity = told.get("severity")
        shown = "-" if not severity else "{:.2f} ({:.2f} to {:.2f})".format(*severity[:3])
        reached = f"{told.get('reached', '-')} of {told.get('batch_norms', '-')}"
        verdicts = [f"{entry['status']} {_short(entry['verdict'])}" if entry else "-" for entry in (told, untold)]
        lines.append(_line([row["name"], row["weights"], row["noise"], reached, shown, *verdicts]))
    return "\n".join(lines)


def _short(verdict: str) -> str:
    """The part of a verdict in front of its explanation."""
    return verdict.partition(":")[0].rstrip(".")


def _worth(rows: Sequence[Row]) -> str:
    lines = _head(["network", "metric", "units", *_WAYS])
    for row in rows:
        for number, (name, _, digits) in enumerate(row["metrics"]):
            cells = [_cell(row["ways"].get(way), number, digits) for way in _WAYS]
            lines.append(_line([row["name"], name, str(row["units"]), *cells]))
    return "\n".join(lines)


def _cell(way: Row | None, number: int, digits: int) -> str:
    if way is None:
        return "-"
    if "values" not in way:
        return "refused"
    value = f"{way['values'][number]:.{digits}f}"
    if "differences" not in way:
        return value
    _, low, high = way["differences"][number]
    if way.get("method") == "none":
        return f"{value} (unchanged)"
    return f"{value} ({low:+.{digits}f} to {high:+.{digits}f})"


def _held(rows: Sequence[Row]) -> str:
    lines = _head(["network", "against the original", "TensorRT-RTX", "default does", "seconds"])
    for row in rows:
        parity = row["parity_db"]
        shown = "-" if parity is None else "equal" if math.isinf(parity) else f"{parity:.0f} dB"
        told = f"{shown} ({row['parity_with']})" if row["parity_with"] else shown
        default = row["ways"][DEFAULT]
        said = f"{default['status']} {default['method']}" if "status" in default else default["error"]
        lines.append(_line([row["name"], told, row.get("engine", "-"), said, str(default.get("seconds", "-"))]))
    return "\n".join(lines)
