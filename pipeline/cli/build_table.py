"""What is printed of a build."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from rich.table import Table

from vsfix.pipeline.building.building import BuildReport
from vsfix.pipeline.tensorrt.engine_file import sidecar_path
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


def build_lines(report: BuildReport, output: Path) -> Iterator[str]:
    """The lines under the table."""
    proof = report.precision
    for name, shapes in report.profile.items():
        yield f"shapes: {name} {shapes}"
    asked = proof.asked or "as the file says"
    yield f"precision: {asked}, TF32 {'on' if proof.tensor_float else 'off'}; shown by the {proof.source}"
    if proof.reason:
        yield f"SKIP engine inspector: {proof.reason}"
    if report.losses:
        more = f", and {len(report.losses) - 1} channels more" if len(report.losses) > 1 else ""
        yield f"WARN digits are lost in {report.losses[0]}{more}; `vsfix verify` tells what that costs"
    if report.warning:
        yield f"WARN {report.warning}"
    yield summarize(report.read_back)
    for reason in skipped_reasons(report.read_back):
        yield f"SKIP {reason}"
    size = report.plan["bytes"] / 2**20
    targets = ", ".join(report.targets)
    yield f"wrote {output} ({report.runtime} {report.version}, {targets}; {size:.2f} MiB, {report.build_seconds:.1f} s)"
    yield f"wrote {sidecar_path(output)}"
