"""The report of a repair of a module, as plain data that prints as a table."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from vsfix.graph_passes.noise_average.nearness import AS_TRAINED, Candidate
from vsfix.graph_passes.noise_average.severity import Severity

_MANY = 8  # layers that are printed


@dataclass(frozen=True)
class Layer:
    """One unit: its mean squared distance from F over the variance of F, on held-out samples, before and after."""

    name: str
    before: float
    after: float


@dataclass(frozen=True)
class RepairReport:
    """The outcome of `repair_`; `str()` is a table with a verdict.

    Attributes:
        method: `match`, `match+refine`, or `none` where nothing was changed.
        reason: why.
        changed: the names of the parts that were changed.
        severity: R of the module as given, on all samples; None where it makes no noise.
        before: the same on the samples that judge; None where no candidate was tried.
        after: R of the repaired module on them; None where nothing was changed.
        samples: how many different ones were used.
        judges: how many of them judge the candidates and were not fitted.
        draws: of the noise.
        noise: where it is made and of which kind, one line each.
        outputs: how each output is read, one line each.
        candidates: every one that was tried, the module as given first.
        layers: of every unit that was matched.
        warnings: what a person should know.
    """

    method: str
    reason: str
    changed: tuple[str, ...] = ()
    severity: Severity | None = None
    before: Severity | None = None
    after: Severity | None = None
    samples: int = 0
    judges: int = 0
    draws: int = 0
    noise: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()
    candidates: tuple[Candidate, ...] = ()
    layers: tuple[Layer, ...] = ()
    warnings: tuple[str, ...] = ()

    @property
    def status(self) -> str:
        """PASS where all is well; WARN where R stays high or something is to be known; SKIP where there is no R."""
        last = self.after or self.severity
        if last is None:
            return "WARN" if self.warnings else "SKIP"
        return "WARN" if self.warnings or not last.is_healthy else "PASS"

    @property
    def verdict(self) -> str:
        """One sentence."""
        if self.before is None or self.after is None:
            return f"Nothing changed: {self.reason}."
        ratios = f"{self.before.ratio:.2f} -> {self.after.ratio:.2f}"
        return f"Repaired {len(self.changed)} parts ({self.method}); R, the distance to what was trained: {ratios}."

    def __str__(self) -> str:
        lines = [f"noise       {'; '.join(self.noise) or 'none'}"]
        lines += [f"output      {line}" for line in self.outputs]
        if self.draws:
            lines.append(f"samples     {self.samples}, {self.judges} of them judge; {self.draws} draws of the noise")
        if self.severity is not None:
            r = self.severity
            lines.append(f"R           {r.ratio:.2f} ({r.low:.2f} to {r.high:.2f}) as given, on all samples")
        if self.candidates:
            lines += ["", *_table(("candidate", "R", "p", "decisions off"), [_cells(row) for row in self.candidates])]
        if self.layers:
            worst = sorted(self.layers, key=lambda layer: -layer.before)[:_MANY]
            rows = [(layer.name or "the module", f"{layer.before:.3f}", f"{layer.after:.3f}") for layer in worst]
            more = len(self.layers) - len(worst)
            lines += [
                "",
                *_table(("layer: distance", "before", "after"), rows),
                *([f"and {more} more"] if more else []),
            ]
        lines += ["", *(f"WARN  {warning}" for warning in self.warnings), f"{self.status}  {self.verdict}"]
        return "\n".join(lines)

    def to_json(self) -> str:
        """The fields as JSON, with `status` and `verdict`; numbers that are not finite are null."""
        values = {**asdict(self), "status": self.status, "verdict": self.verdict}
        return json.dumps(_finite(values), indent=2)


def _cells(row: Candidate) -> tuple[str, ...]:
    """One line of the table of candidates."""
    p_value = "" if row.name == AS_TRAINED else f"{row.p_value:.4f}"
    return row.name, f"{row.severity:.3f}", p_value, "" if row.changed is None else f"{100 * row.changed:.1f} %"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Columns side by side: words to the left, numbers to the right."""
    widths = [max(len(line[column]) for line in (head, *rows)) for column in range(len(head))]
    return [
        "  ".join([line[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(line[1:], widths[1:], strict=True))]).rstrip()
        for line in (head, *rows)
    ]


def _finite(value: Any) -> Any:
    """Plain data that JSON can hold."""
    if isinstance(value, dict):
        return {key: _finite(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
