"""A figure as SVG: drawn by matplotlib, its words left as text, its colours those of the page."""

from __future__ import annotations

import io
import math
import re
import warnings
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Sequence
from typing import Any

import matplotlib as mpl
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure

# Stands for the colour of the page's text until the SVG is part of the page.
TEXT_COLOUR = "#010203"
# As style.css names them: --series-1 and so on, each with a lighter twin for a dark page.
SERIES = ("#c02942", "#1f77a8", "#9a6a00", "#2a7f4f", "#7b4fa6", "#6b5b4b")
BEFORE, AFTER = SERIES[:2]
MARKERS = ("o", "s", "^", "D", "v", "P")
SHAPES = ("round", "square", "triangle", "diamond", "down", "plus")  # the same in a key of the page, by style.css
_NO_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_MIN_GAP = 0.07  # between two ticks, as a share of the axis


def figure_svg(
    draw: Callable[[Sequence[Axes]], None], widths: Sequence[int] = (1,), size: tuple[float, float] = (8, 3.6)
) -> str:
    """Draws a figure of one or more plots side by side.

    Args:
        draw: is given the plots.
        widths: of the plots, in relation to each other.
        size: of the figure in inches; letters are of ten points.

    Returns:
        An `<svg>` element whose text takes the colour of the page.
    """
    settings: dict[Any, Any] = {
        "svg.fonttype": "none",
        "svg.hashsalt": "vsfix",
        "font.family": "sans-serif",
        "text.color": TEXT_COLOUR,
        "text.parse_math": False,  # a name may hold a dollar sign
        "axes.labelcolor": TEXT_COLOUR,
        "axes.edgecolor": TEXT_COLOUR,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "xtick.color": TEXT_COLOUR,
        "ytick.color": TEXT_COLOUR,
    }
    with mpl.rc_context(), warnings.catch_warnings():
        # The browser has letters that matplotlib's font lacks; here they only lack a width.
        warnings.filterwarnings("ignore", "Glyph .* missing", UserWarning)
        mpl.rcdefaults()  # a figure is the same wherever it is drawn
        mpl.rcParams.update(settings)
        figure = Figure(figsize=size, layout="constrained")
        draw(figure.subplots(1, len(widths), width_ratios=widths, squeeze=False)[0])
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    # A name may hold what XML may not, as an escape sequence.
    svg = _NO_XML.sub("\N{REPLACEMENT CHARACTER}", buffer.getvalue())
    return svg[svg.index("<svg") :].replace(TEXT_COLOUR, "currentColor")


def page_figure(
    draw: Callable[[Axes], None], name: str, label: str, size: tuple[float, float], shown: str = ""
) -> Markup:
    """Draws one plot for the page, where several figures stand in one document.

    Args:
        draw: is given the plot.
        name: no other figure of the page has it.
        label: what the figure shows, for those who can't see it.
        size: in inches; the browser makes it smaller where it is wider than the page, and larger up to a quarter.
        shown: a class of style.css that says on which width of page it is shown; empty for all.

    Returns:
        An `<svg>` element without namespaces, metadata, fonts and rules of its own, every id begun by `name`.
    """
    root = ElementTree.fromstring(figure_svg(lambda plots: draw(plots[0]), size=size))
    for parent in list(root.iter()):
        for child in [child for child in parent if _local(child.tag) in ("metadata", "style")]:
            parent.remove(child)
    for element in root.iter():
        element.tag = _local(element.tag)
        element.attrib = {_local(key): _value(_local(key), value, name) for key, value in element.attrib.items()}
    root.attrib = {
        "viewBox": root.attrib["viewBox"],
        "class": f"plot {shown}".strip(),
        "style": f"max-width: {size[0] * 96 * 1.25:.0f}px",
        "role": "img",
        "aria-label": label,
    }
    return Markup(ElementTree.tostring(root, encoding="unicode"))


def spaced(values: Sequence[float], low: float, high: float) -> list[float]:
    """The values between two ends of a logarithmic axis far enough apart for their labels; the first stays."""
    kept: list[float] = []
    for value in values:
        if low <= value <= high and (not kept or math.log(value / kept[-1]) >= _MIN_GAP * math.log(high / low)):
            kept.append(value)
    return kept


def _local(name: str) -> str:
    """A name without its namespace."""
    return name.rpartition("}")[2]


def _value(key: str, value: str, prefix: str) -> str:
    """An attribute as the page has it: its ids begun by a prefix, its colours and fonts those of the page."""
    if key == "id":
        return f"{prefix}-{value}"
    if key == "href":
        return f"#{prefix}-{value.removeprefix('#')}"
    value = re.sub(r"url\(#", f"url(#{prefix}-", value)
    if key == "style":
        value = re.sub(r"font-family:[^;]*;?", "", value)
        value = re.sub(r"(font:[^;]*?px) [^;]*", r"\1 system-ui, sans-serif", value)
        for number, colour in enumerate(SERIES, 1):
            value = value.replace(colour, f"var(--series-{number})")
    return value
