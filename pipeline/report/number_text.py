"""Numbers as the page writes them."""

from __future__ import annotations

import math
import re

from vsfix.pipeline.comparison.score_difference import NOT_FINITE, Score

MINUS = "\N{MINUS SIGN}"


def percent(share: float, digits: int = 1) -> str:
    """A share in [0, 1] as per cent."""
    return f"{100 * share:.{digits}f} %"


def score_interval(score: Score, digits: int = 1) -> str:
    """The ends of the interval of a metric; empty where it has none."""
    if not math.isfinite(score.low) or not math.isfinite(score.high):
        return ""
    low, high = (score.number(end, digits).removesuffix(" %") for end in (score.low, score.high))
    return f"{low} \N{EN DASH} {high} {score.unit}".rstrip()


def score_text(score: Score) -> str:
    """A metric with its interval."""
    interval = score_interval(score)
    return score.number(score.value) + (f" ({interval})" if interval else "")


def headed(text: str) -> str:
    """A text as it begins a sentence or a heading."""
    return text[0].upper() + text[1:]


def ratio(value: float) -> str:
    """A ratio of variances."""
    return f"{value:.3f}" if value < 1000 else f"{value:.3g}"


def ratio_interval(interval: tuple[float, float]) -> str:
    """The interval of a ratio."""
    return f"{ratio(interval[0])} – {ratio(interval[1])}"


def gain(value: float) -> str:
    """A factor of any size, by its three leading digits."""
    return f"{value:#.3g}"


def points(difference: float, digits: int = 2) -> str:
    """A difference of two percentages, with its sign."""
    return f"{difference:+.{digits}f}".replace("-", MINUS)


def signed(difference: float, *, is_share: bool) -> str:
    """The difference of two values of a metric, with its sign; of shares in percentage points."""
    if not math.isfinite(difference):
        return NOT_FINITE
    return points(difference) if is_share else f"{difference:+.3g}".replace("-", MINUS)


def decibels(snr_db: float) -> str:
    """Signal to noise; `exact` where there is no noise, words where a number is not finite."""
    if snr_db == math.inf:
        return "exact"
    return f"{snr_db:.1f} dB" if math.isfinite(snr_db) else NOT_FINITE


def small(value: float) -> str:
    """A small number, as an error, by its two leading digits."""
    return f"{value:.2g}"


def probability(p_value: float) -> str:
    """A p-value; one that is next to nothing as its bound."""
    return "p < 1e-9" if p_value < 1e-9 else f"p = {p_value:.2g}"


def milliseconds(value: float) -> str:
    """A latency, by its three leading digits."""
    return f"{value:#.3g}" if value < 100 else f"{value:.0f}"


def cosine(value: float) -> str:
    """A cosine, which is near 1."""
    return f"{value:.7f}"


def seconds(value: float) -> str:
    """A time that a person waits."""
    return f"{value:.1f} s"


def mebibytes(size: float) -> str:
    """The size of a file."""
    return f"{size / 2**20:.2f} MiB"


def count(value: float) -> str:
    """A whole number, thousands set apart."""
    return f"{value:,.0f}".replace(",", "\N{THIN SPACE}")


def bound(sentence: str) -> str:
    """A sentence in which a number and its unit, or its exponent, stay on one line."""
    bound_units = sentence.replace(" %", "\N{NO-BREAK SPACE}%").replace(" dB", "\N{NO-BREAK SPACE}dB")
    return re.sub(r"(?<=\de)-(?=\d)", "\N{NON-BREAKING HYPHEN}", bound_units)
