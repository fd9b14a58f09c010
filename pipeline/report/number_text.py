"""Numbers as the page writes them; a number that is not there is a dash."""

from __future__ import annotations

import math

ABSENT = "–"


def percent(share: float | None, digits: int = 1) -> str:
    """A share in [0, 1] as per cent."""
    return ABSENT if share is None else f"{100 * share:.{digits}f} %"


def share_interval(low: float, high: float, digits: int = 1) -> str:
    """Two shares as the ends of an interval in per cent."""
    return f"{100 * low:.{digits}f} – {100 * high:.{digits}f} %"


def ratio(value: float | None) -> str:
    """A ratio of variances."""
    if value is None:
        return ABSENT
    return f"{value:.3f}" if value < 1000 else f"{value:.3g}"


def ratio_interval(interval: tuple[float, float] | None) -> str:
    """The interval of a ratio."""
    return ABSENT if interval is None else f"{ratio(interval[0])} – {ratio(interval[1])}"


def points(difference: float | None) -> str:
    """A difference of two percentages, with its sign."""
    return ABSENT if difference is None else f"{difference:+.2f}".replace("-", "\N{MINUS SIGN}")


def decibels(snr_db: float | None) -> str:
    """Signal to noise; `exact` where there is no noise, words where a number is not finite."""
    if snr_db is None:
        return ABSENT
    if snr_db == math.inf:
        return "exact"
    return f"{snr_db:.1f} dB" if math.isfinite(snr_db) else "not finite"


def small(value: float | None) -> str:
    """A small number, as an error or a p-value, by its two leading digits."""
    return ABSENT if value is None else f"{value:.2g}"


def milliseconds(value: float | None) -> str:
    """A latency, by its three leading digits."""
    if value is None:
        return ABSENT
    return f"{value:#.3g}" if value < 100 else f"{value:.0f}"


def count(value: float | None) -> str:
    """A whole number, thousands set apart."""
    return ABSENT if value is None else f"{value:,.0f}".replace(",", "\N{THIN SPACE}")
