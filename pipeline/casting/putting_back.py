"""The layers that a narrow type costs most are put back to float32, until a share of the metric is kept.

Each layer is measured by itself: the model with this one layer narrow and all others in float32, its outputs against
those of float32 (SNR). In the order of what they cost they are put back; a bisection finds how many are needed, and
what the metric keeps without one of them is left narrow after all. Of more than `MOST` layers, groups of neighbours
are measured first, and then the layers of the groups that were needed. No clock and no random number decides.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from vsfix.graph_passes.errors import CheckFailedError
from vsfix.graph_passes.progress import stage

_DIGITS = 8  # of a share in percent, behind the point
MOST = 64  # units that are measured by themselves


@dataclass(frozen=True)
class PutBack:
    """One layer, or a group of neighbours, that is in float32 again.

    Attributes:
        layers: their names.
        alone_db: SNR of the model with them alone in the narrow type; None where the type can't hold a weight, or an
            output is not finite.
        without: the share of the metric that would be kept with all that was put back but these; None where the
            type can't hold the model then.
    """

    layers: tuple[str, ...]
    alone_db: float | None
    without: float | None


@dataclass(frozen=True)
class PuttingBack:
    """The search for the layers to be put back.

    Attributes:
        subject: what is kept, in words.
        bar: the share of it that was wanted.
        before: the share with every layer narrow; None where the type can't hold a weight, or outputs are not finite.
        after: the share of what is written.
        rows: what was put back, the costliest first.
        layers: how many could have been.
        runs: how many models were run to find out.
    """

    subject: str
    bar: float
    before: float | None
    after: float
    rows: tuple[PutBack, ...]
    layers: int
    runs: int

    @property
    def names(self) -> frozenset[str]:
        """The layers that were put back."""
        return frozenset(name for row in self.rows for name in row.layers)

    @property
    def doubts(self) -> tuple[str, ...]:
        """That nothing is left of the narrow type that was asked for."""
        if len(self.names) < self.layers:
            return ()
        told = f"all {self.layers} layers" if self.layers > 1 else "the one layer there is"
        return (f"{told} had to be put back to float32 to keep {_percent(self.bar)}: the file is narrower nowhere",)

    @property
    def lines(self) -> tuple[tuple[str, str], ...]:
        """What is kept, and each layer that was put back with what it bought, in words."""
        counted = f"{len(self.names)} of {self.layers} layers, by {self.runs} {'run' if self.runs == 1 else 'runs'}"
        found = [
            ("share kept", f"{_percent(self.after)} of {self.subject}, wanted {_percent(self.bar)}"),
            ("put back to float32", f"{counted}; every layer narrow keeps {_percent(self.before)}"),
        ]
        for row in self.rows:
            alone = "not finite" if row.alone_db is None else f"{row.alone_db:.1f} dB"
            told = f"narrow too, {_percent(row.without)} would be kept; narrow alone: {alone}"
            found.append((f"  {', '.join(row.layers)}", told))
        return tuple(found)


class _Search:
    """The measurements, each made once."""

    def __init__(
        self,
        layers: Sequence[str],
        snr_db: Callable[[frozenset[str]], float],
        kept: Callable[[frozenset[str]], float],
        bar: float,
    ) -> None:
        self.layers, self.bar = layers, bar
        self.runs = 0
        self._snr_db, self._kept = snr_db, kept
        self._shares: dict[frozenset[str], float] = {}

    def share(self, wide: frozenset[str]) -> float:
        """The share that is kept with these layers in float32."""
        if wide not in self._shares:
            self.runs += 1
            self._shares[wide] = self._kept(wide)
        return self._shares[wide]

    def holds(self, wide: frozenset[str]) -> bool:
        """Whether the bar holds with these layers in float32."""
        return self.share(wide) >= self.bar

    def alone(self, unit: Sequence[str]) -> float:
        """The SNR with these layers alone in the narrow type."""
        self.runs += 1
        return self._snr_db(frozenset(self.layers) - frozenset(unit))

    def chosen(self, units: Sequence[tuple[str, ...]]) -> list[tuple[tuple[str, ...], float]]:
        """The fewest units that hold the bar, of those that cost most, each with its own SNR."""
        costs = []
        with stage("what each layer costs", len(units)) as measured:
            for unit in units:
                costs.append(self.alone(unit))
                measured.step()
        order = sorted(range(len(units)), key=lambda index: (costs[index], index))
        low, high = 0, len(order)  # with `high` units in float32 the bar holds
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if self.holds(_union(units, order[:middle])) else (middle, high)
        found = order[:high]
        for index in found[:-1]:  # the last one is needed, or the bisection had ended before
            fewer = [other for other in found if other != index]
            if self.holds(_union(units, fewer)):
                found = fewer
        return [(units[index], costs[index]) for index in found]


@stage("putting layers back to float32")
def put_back(
    layers: Sequence[str],
    snr_db: Callable[[frozenset[str]], float],
    kept: Callable[[frozenset[str]], float],
    bar: float,
    subject: str,
    precision: str,
) -> PuttingBack:
    """Finds the layers to be put back.

    Args:
        layers: that can be, in the order of the graph.
        snr_db: of the model with these layers in float32, against float32 throughout, in dB.
        kept: the share of the metric that is kept with these layers in float32; both minus infinity where the narrow
            type can't hold the model.
        bar: the share that is wanted, in (0, 1].
        subject: what is kept, in words.
        precision: as `--precision` takes it.

    Raises:
        CheckFailedError: the bar does not hold with every layer in float32 either.
    """
    search = _Search(layers, snr_db, kept, bar)
    before = search.share(frozenset())
    rows: list[PutBack] = []
    if before < bar:
        if not search.holds(frozenset(layers)):
            raise CheckFailedError(
                f"refused: with all {len(layers)} layers put back to float32 the rest in {precision} keeps "
                f"{_text(search.share(frozenset(layers)))} of {subject}, wanted {bar:g}; nothing is written; leave the "
                "precision as it is"
            )
        size = math.ceil(len(layers) / MOST)
        units = [tuple(layers[first : first + size]) for first in range(0, len(layers), size)]
        found = search.chosen(units)
        inner = [(name,) for unit, _ in found for name in unit]
        if size > 1 and len(inner) <= MOST:
            found = search.chosen(inner)
        wide = frozenset(name for unit, _ in found for name in unit)
        rows = [PutBack(unit, _finite(alone), _finite(search.share(wide - frozenset(unit)))) for unit, alone in found]
    after = search.share(frozenset(name for row in rows for name in row.layers))
    return PuttingBack(subject, bar, _finite(before), after, tuple(rows), len(layers), search.runs)


def _union(units: Sequence[tuple[str, ...]], chosen: Sequence[int]) -> frozenset[str]:
    """The layers of some units."""
    return frozenset(name for index in chosen for name in units[index])


def _finite(value: float) -> float | None:
    """A number that JSON has; None for the others."""
    return value if math.isfinite(value) else None


def _percent(share: float | None) -> str:
    """A share in percent, with the digits that tell it from 100."""
    if share is None:
        return "nothing"
    lost = 100 * (1 - share)
    digits = min(math.ceil(-math.log10(lost)) + 2, _DIGITS) if 0 < lost < 0.1 else 2
    return f"{100 * share:.{digits}f} %"


def _text(share: float) -> str:
    """A share in words."""
    return f"{share:.4f}" if math.isfinite(share) else "nothing"
