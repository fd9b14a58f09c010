"""The measurements of the repairs that a PyTorch user has at hand, as a Markdown table and as a figure."""

from __future__ import annotations

import io
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator

AS_TRAINED = "as trained"
AVERAGED = "noise-averaged network"
FVCORE = "fvcore, noise off"
DIPOORLET = "Dipoorlet's formula"
# Each method: its colour and its marker.
METHODS = {
    "update_bn": ("#999999", "x"),
    "update_bn, noise off": ("#e69f00", "^"),
    FVCORE: ("#cc79a7", "v"),
    DIPOORLET: ("#d55e00", "P"),
    "vsfix exact": ("#56b4e9", "s"),
    "vsfix paired": ("#0072b2", "o"),
    "vsfix match": ("#009e73", "D"),
}


@dataclass(frozen=True)
class Measurement:
    """One repair.

    Attributes:
        method: `as trained`, or one of METHODS.
        images: that the method was given.
        seed: of their choice, and of the noise.
        top1: in per cent.
        seconds: for the repair.
        used: the images that the method took.
    """

    method: str
    images: int
    seed: int
    top1: float
    seconds: float
    used: int


def table(found: Sequence[Measurement], images: Sequence[int]) -> str:
    """Top-1 and time, one row for each method, in Markdown."""
    heads = [f"{count:,}" for count in images]
    lines = []
    for what, cell in (("top-1, %", top1_cell), ("time, s", seconds_cell)):
        lines += [f"| {what} | " + " | ".join(heads) + " |", "| --- " * (len(heads) + 1) + "|"]
        if cell is top1_cell:
            start = f"{as_trained(found):.2f}"
            lines.append(f"| {AS_TRAINED} | " + " | ".join([start] * len(images)) + " |")
        for method in METHODS:
            cells = [cell(select(found, method, count)) for count in images]
            if method == FVCORE and set(cells) == {"-"}:
                cells = ["not installed: `pip install fvcore`", *cells[1:]]
            lines.append(f"| {method} | " + " | ".join(cells) + " |")
        if cell is top1_cell:
            averaged = top1_cell(select(found, AVERAGED, 0))
            lines.append(f"| {AVERAGED} | " + " | ".join([averaged] * len(images)) + " |")
        lines.append("")
    paired = [select(found, "vsfix paired", count)[:1] for count in images]
    stopped = ", ".join(f"{m.used} of {m.images:,}" for group in paired for m in group if m.used < m.images)
    return "\n".join(lines) + (f"\nvsfix paired stopped after {stopped} images (seed 0)" if stopped else "")


def as_trained(found: Sequence[Measurement]) -> float:
    """Top-1 without a repair, in per cent."""
    return select(found, AS_TRAINED, 0)[0].top1


def select(found: Sequence[Measurement], method: str, images: int) -> list[Measurement]:
    """One measurement for each seed."""
    return [m for m in found if (m.method, m.images) == (method, images)]


def top1_cell(found: Sequence[Measurement]) -> str:
    """The mean over the seeds, and the extremes where there are several."""
    values = [m.top1 for m in found]
    if not values:
        return "-"
    mean = statistics.mean(values)
    return f"{mean:.2f}" if len(values) == 1 else f"{mean:.2f} ({min(values):.2f}-{max(values):.2f})"


def seconds_cell(found: Sequence[Measurement]) -> str:
    """The median over the seeds."""
    return f"{statistics.median(m.seconds for m in found):.2f}" if found else "-"


def draw(found: Sequence[Measurement], images: Sequence[int], title: str) -> str:
    """Top-1 against the number of images, as SVG: the mean over the seeds, and a band between the extremes."""
    settings: dict[Any, Any] = {"svg.fonttype": "none", "svg.hashsalt": "vsfix", "font.family": "sans-serif"}
    with mpl.rc_context(settings):
        figure = Figure(figsize=(8, 4.6), layout="constrained", facecolor="white")
        axes = figure.add_subplot()
        for method, (colour, marker) in METHODS.items():
            groups = [(n, [m.top1 for m in select(found, method, n)]) for n in images]
            counts, values = [n for n, group in groups if group], [group for _, group in groups if group]
            if not counts:
                continue
            low, high = [min(group) for group in values], [max(group) for group in values]
            axes.fill_between(counts, low, high, color=colour, alpha=0.18, linewidth=0)
            means = [statistics.mean(group) for group in values]
            style = "-" if method.startswith("vsfix") else "--"  # the two with the noise off lie on each other
            axes.plot(counts, means, style, color=colour, marker=marker, markersize=5, linewidth=1.8, label=method)
        axes.axhline(as_trained(found), color="#333333", linewidth=1, linestyle=(0, (6, 4)), label=AS_TRAINED)
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(FixedLocator(spread_out(images)))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
        axes.grid(axis="y", color="#dddddd", linewidth=0.6)
        axes.set_axisbelow(True)
        axes.set_xlabel("calibration images")
        axes.set_ylabel("top-1 on the test images, %")
        axes.set_title(f"Accuracy after each repair: {title}", fontsize=11)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
        axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return buffer.getvalue()


def spread_out(images: Sequence[int]) -> list[int]:
    """The numbers that stand far enough apart on a logarithmic axis for their labels."""
    kept: list[int] = []
    for count in sorted(images):
        if not kept or math.log(count / kept[-1]) > 0.06 * math.log(max(images) / min(images)):
            kept.append(count)
    return kept
