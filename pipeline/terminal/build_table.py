"""The terminal's view of a build."""

from __future__ import annotations

from collections.abc import Iterator

from rich.table import Table

from vsfix.pipeline.building.building import BuildReport
from vsfix.pipeline.tensorrt.engine_readback import skipped_reasons, summarize


def layers_table(report: BuildReport) -> Table:
    """How many layers of each kind compute in each type."""
    proof = report.precision
    layers = proof.network if proof.engine is None else proof.engine
    kinds = sorted({kind for counts in layers.values() for kind in counts})
    table = Table(title="Layers by type", title_justify="left")
    table.add_column("layer", overflow="fold")
    for kind in kinds:
        table.add_column(kind, justify="right")
    for layer, counts in layers.items():
        table.add_row(layer, *(str(counts[kind]) if kind in counts else "-" for kind in kinds))
    return table


def build_view(report: BuildReport) -> Iterator[str | Table]:
    """A build: its layers, its shapes, what proves its precision and its weights."""
    yield layers_table(report)
    proof = report.precision
    for name, shapes in report.profile.items():
        yield f"shapes: {name} {shapes}"
    asked = proof.asked or "as the file says"
    yield f"precision: {asked}, TF32 {'on' if proof.tensor_float else 'off'}; shown by the {proof.source}"
    if proof.reason:
        yield f"SKIP engine inspector: {proof.reason}"
    for warning in build_warnings(report):
        yield f"WARN {warning}"
    yield summarize(report.read_back)
    for reason in skipped_reasons(report.read_back):
        yield f"SKIP {reason}"


def build_warnings(report: BuildReport) -> list[str]:
    """The caveats of an engine, one line each."""
    more = f", and {len(report.losses) - 1} channels more" if len(report.losses) > 1 else ""
    lost = [f"digits are lost in {line}{more}; `vsfix verify` tells what that costs" for line in report.losses[:1]]
    return [*lost, *([report.warning] if report.warning else [])]


def size_line(report: BuildReport) -> str:
    """The target of an engine, its size, and the time of its build."""
    size, targets = report.plan["bytes"] / 2**20, ", ".join(report.targets)
    return f"{report.runtime} {report.version}, {targets}; {size:.2f} MiB, {report.build_seconds:.1f} s"
