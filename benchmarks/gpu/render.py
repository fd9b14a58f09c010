"""Writes what `run_all.py` measured into the page of the guide, between its two marks.

    python benchmarks/gpu/render.py docs/gpu.md gpu-results/results.json
    python benchmarks/gpu/render.py docs/gpu.md                             # no results: the page says so

A dry run is refused, for it measures nothing, and so is what ran on no GPU.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from results import Results
from steps import Found, Step

BEGIN, END = "<!-- measured: benchmarks/gpu/render.py -->", "<!-- end of what was measured -->"
NOTHING = "Not measured: no GPU was at hand. What follows is what is ready to be run."
_SHOWN = (
    *("GPU", "driver", "highest SM clock", "throttle reasons", "tensorrt", "tensorrt-rtx-cu13", "onnxruntime-gpu"),
    *("onnxruntime", "vsfix", "date"),
)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("page", type=Path)
    parser.add_argument("results", type=Path, nargs="?")
    options = parser.parse_args(arguments)
    results = None
    if options.results is not None:
        try:
            if not options.results.exists():
                raise ValueError(f"{options.results}: no such file")
            results = Results(options.results)
            if not results.environment.get("GPU"):
                raise ValueError(f"{options.results}: was not measured on a GPU")
        except ValueError as error:
            print(error, file=sys.stderr)
            return 2
    options.page.write_text(rendered(options.page.read_text(), results))
    return 0


def rendered(page: str, results: Results | None) -> str:
    """The page with what was measured between its marks; all else as it is."""
    head, begin, rest = page.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not begin or not end:
        raise ValueError("the page has no marks to write between")
    return f"{head}{BEGIN}\n\n{measured(results)}\n\n{END}{tail}"


def measured(results: Results | None) -> str:
    """What the page says of the results."""
    if results is None or not results.found:
        return NOTHING
    known = [f"{key} {results.environment[key]}" for key in _SHOWN if results.environment.get(key)]
    known += sorted({f"torch {found['torch']}" for found in _of(results, "numbers").values()})
    misses = [f"- missed: {miss}" for miss in results.misses] or ["- every target of what was run is met"]
    return "\n".join(
        [", ".join(known), "", tables(results), "", *misses, *(f"- not run: {x}" for x in results.not_run)]
    )


def tables(results: Results) -> str:
    """Markdown: the numbers, the latencies, the training, Uout's step; only what there is, of a dry run no times."""
    if results.dry_run:
        return _numbers(_of(results, "numbers"))
    parts = [
        _numbers(_of(results, "numbers")),
        _latencies(_of(results, "latency")),
        *(_throughput(found) for found in _of(results, "training").values()),
        *(_uout(found) for found in _of(results, "uout").values()),
    ]
    return "\n\n".join(part for part in parts if part)


def _of(results: Results, kind: str) -> Mapping[Step, Found]:
    """The steps of a kind that gave numbers."""
    return {step: found for step, found in results.found.items() if step.kind == kind and "error" not in found}


def _table(head: str, rows: Sequence[str]) -> str:
    columns = head.count("|") + 1
    return "\n".join([f"| {head} |", "| --- " * columns + "|", *(f"| {row} |" for row in rows)]) if rows else ""


def _numbers(found: Mapping[Step, Found]) -> str:
    rows = [
        f"{step.network} | {step.form} | {step.backend} | {step.precision} | {line['snr_db']:.1f} dB | "
        f"{100 * line['agreement']:.2f} % | {line['top1_torch']:.2f} % | {line['top1']:.2f} % | "
        + (f"{line['build_seconds']:.1f} s" if "build_seconds" in line else "-")
        for step, line in found.items()
    ]
    return _table("network | form | backend | precision | SNR | agreement | top-1 torch | top-1 | build", rows)


def _latencies(found: Mapping[Step, Found]) -> str:
    rows = [
        f"{step.network} | {step.backend} | {step.precision} | {step.batch} | {line['original']['p50_ms']:.4f} ms | "
        f"{line['repaired']['p50_ms']:.4f} ms | {line['repaired']['p99_ms']:.4f} ms | "
        f"{100 * line['repaired']['cv']:.1f} % | {_interval([line['ratio'], *line['interval']])}"
        for step, line in found.items()
    ]
    return _table("network | backend | precision | batch | original p50 | repaired p50 | p99 | CV | ratio", rows)


def _throughput(found: Found) -> str:
    head = "training | loop | images/s | over torch eager"
    return _contenders(head, found["throughput"], "images_per_second", "{:,.0f}", "over_eager")


def _uout(found: Found) -> str:
    head = "Uout | noise | a step | over nn.Dropout"
    return _contenders(head, found["uout"], "milliseconds", "{:.3f} ms", "over_dropout")


def _contenders(head: str, found: Found, measured: str, shown: str, ratio: str) -> str:
    """A row for each contender of each case: what was measured of it, and how it compares."""
    rows = [
        f"{case} | {name} | {shown.format(value)} | {_interval(lines[ratio][name])}"
        for case, lines in found.items()
        for name, value in lines[measured].items()
    ]
    return _table(head, rows)


def _interval(value: Sequence[float]) -> str:
    return f"{value[0]:.3f} ({value[1]:.3f} to {value[2]:.3f})"


if __name__ == "__main__":
    sys.exit(main())
