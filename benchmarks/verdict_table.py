"""Counts the verdicts against the truth, and names each miss.

    right fault          in 57 of 60. Spoilt statistics or data: that is what the verdict names, with noise beside it or
                         not. Noise: where it costs 2 points and more, the noise; below, the noise or nothing
    lost noise           of the networks that lost Dropout of 0.2 and more, which some BatchNorm follows, in 95 % every
                         such place is found with a ratio within 0.05, and no place that had none
    healthy              none is called damaged, and none is changed
    damaged              none that loses 2 points and more is called PASS, before or after `vsfix optimize`

The loss is that against the average over the noise, the network that was trained, and counts where its 95 % interval is
above 0. What statistics that are re-estimated without noise gain beyond that average, where they do, stands beside it
and is no damage. A ratio is that of the Dropout with the same variance. The fault beside noise is that of the JSON;
else it is read from the sentence: `CLAIMS`, the first pattern that fits.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from verdict_judge import Answer

from vsfix.graph_passes.noise.noise import Noise

RIGHT_SHARE, FOUND_SHARE = 57 / 60, 0.95
DAMAGE, LEAST_RATIO, WITHIN = 2.0, 0.2, 0.05
CLAIMS = (
    (r"not the only fault", "stale"),
    (r"^Damaged", "noise"),
    (r"^Not clear: R = ", "noise, open"),
    (r"^Nothing to repair", "healthy"),
)
_FAULTS = {"statistics never set": "unset", "stale statistics": "stale", "another input": "input"}
_SPOILT = {
    "unset": "unset",
    "early epoch": "stale",
    "last batch": "stale",
    "0..255": "input",
    "not centred": "input",
    "scaled twice": "input",
}


@dataclass(frozen=True)
class Outcome:
    """One network: the truth, and what was said of it.

    Attributes:
        truth: as truth.json has it.
        answer: of both commands.
    """

    truth: dict[str, Any]
    answer: Answer

    @cached_property
    def spoilt(self) -> str:
        """`unset`, `stale` or `input`; empty where nothing but noise is wrong."""
        return _SPOILT.get(self.truth["draw"]["fault"].split(" and ")[0], "")

    @cached_property
    def noise(self) -> list[dict[str, Any]]:
        """The noise layers that reach a BatchNorm."""
        return [layer for layer in self.truth["noise"] if layer["reaches"]]

    @cached_property
    def loss(self) -> float:
        """Points that the network loses as deployed, beyond chance; 0 where none."""
        return _beyond_chance(self.truth["below_average"])

    @property
    def is_damaged(self) -> bool:
        """Whether it loses 2 points and more."""
        return self.loss >= DAMAGE

    @property
    def is_healthy(self) -> bool:
        """Whether nothing is wrong with it."""
        return not self.spoilt and not self.noise

    @property
    def is_judged(self) -> bool:
        """Whether both commands said something."""
        return "verdict" in self.answer.inspect and "verdict" in self.answer.optimize

    @cached_property
    def said(self) -> str:
        """The fault that `vsfix inspect` names."""
        report = self.answer.inspect
        if "verdict" not in report:
            return f"error {report['exit']}"
        if report.get("fault"):
            return _FAULTS[report["fault"]["kind"]]
        found = (fault for pattern, fault in CLAIMS if re.search(pattern, report["verdict"]))
        return next(found, "unknown")

    @property
    def is_right(self) -> bool:
        """Whether that is the right one."""
        if self.spoilt or self.is_healthy:
            return self.said == (self.spoilt or "healthy")
        return self.said in (("noise",) if self.is_damaged else ("noise", "noise, open", "healthy"))

    @cached_property
    def claims(self) -> dict[str, float]:
        """The ratio of each inferred noise by its tensor."""
        found = {}
        for line in self.answer.inspect.get("noise_sources", []):
            name, _, noise = line.rpartition(" ")
            variance = Noise.parse(noise).variance
            found[re.sub(r"\.noise\d*$", "", name)] = variance / (1 + variance)
        return found

    @property
    def has_lost(self) -> bool:
        """Whether the target of lost noise counts it."""
        is_lost = self.answer.file == "lost.onnx" or self.truth["draw"]["form"] == "lost"
        return is_lost and not self.spoilt and bool(self.wanted)

    @cached_property
    def wanted(self) -> list[dict[str, Any]]:
        """The noise layers that must be found."""
        return [layer for layer in self.noise if layer["kind"] == "dropout" and layer["value"] >= LEAST_RATIO]

    @cached_property
    def unfound(self) -> list[str]:
        """What was not found, and what was found where nothing is."""
        found = []
        for layer in self.wanted:
            ratios = [ratio for tensor, ratio in self.claims.items() if tensor in layer["tensors"]]
            if not any(abs(ratio - layer["value"]) <= WITHIN for ratio in ratios):
                said = ", ".join(f"{ratio:.3f}" for ratio in ratios) or "nothing"
                found.append(f"{layer['module']} dropout:{layer['value']:g}: {said}")
        places = {tensor for layer in self.truth["noise"] for tensor in layer["tensors"]}
        wrong = [(tensor, ratio) for tensor, ratio in self.claims.items() if tensor not in places]
        return found + [f"{tensor} {ratio:.3f}: nothing is there" for tensor, ratio in wrong]


def read_outcomes(folder: Path, results: Path) -> list[Outcome]:
    """What was judged, in the order of the networks; the last line of a network counts."""
    lines = results.read_text().splitlines() if results.exists() else []
    answers = {answer.name: answer for answer in (Answer(**json.loads(line)) for line in lines)}
    return [Outcome(json.loads((folder / name / "truth.json").read_text()), answers[name]) for name in sorted(answers)]


def misses(outcomes: Sequence[Outcome]) -> Iterator[tuple[str, str, str]]:
    """Each miss: the target, the network, and what was said."""
    for outcome in outcomes:
        name, inspect, optimize = outcome.truth["name"], outcome.answer.inspect, outcome.answer.optimize
        said = inspect.get("verdict", inspect.get("error", ""))
        if not outcome.is_right:
            yield "right fault", name, f"{outcome.said}, not {_expected(outcome)}: {said[:160]}"
        if outcome.has_lost and outcome.unfound:
            yield "lost noise", name, "; ".join(outcome.unfound)
        if outcome.is_healthy and outcome.said not in ("healthy", "unknown", "noise, open"):
            yield "healthy", name, f"called {outcome.said}"
        if outcome.is_healthy and optimize.get("repaired"):
            yield "healthy", name, f"optimize changed {optimize['repaired']} BatchNorms"
        if outcome.is_damaged and inspect.get("status") == "PASS":
            yield "damaged", name, f"PASS, and it loses {outcome.loss:.1f} points"
        left = outcome.truth["best"] - (outcome.answer.worth or 0.0)
        if outcome.is_damaged and optimize.get("status") == "PASS" and left >= DAMAGE:
            yield "damaged", name, f"optimize: PASS, and {left:.1f} of {outcome.loss:.1f} points are still lost"


def _beyond_chance(difference: Sequence[float]) -> float:
    """The mean of a mean with its interval; 0 where that reaches down to 0."""
    mean, low, _ = difference
    return mean if low > 0 else 0.0


def _expected(outcome: Outcome) -> str:
    if outcome.spoilt or outcome.is_healthy:
        return outcome.spoilt or "healthy"
    return "noise" if outcome.is_damaged else "noise or healthy"


def print_table(outcomes: Sequence[Outcome]) -> bool:
    """Prints a row for each network, the counts, and the misses; whether every target is met."""
    print("| network | truth | form | loses | said | R | repaired | now | places | seconds |\n" + "| --- " * 10 + "|")
    for outcome in outcomes:
        print(_row(outcome))
    missed = list(misses(outcomes))
    lost = [outcome for outcome in outcomes if outcome.has_lost]
    places = sum(len(outcome.wanted) for outcome in lost)
    counts = {
        "right fault": (sum(outcome.is_right for outcome in outcomes), len(outcomes), RIGHT_SHARE),
        "lost noise": (sum(not outcome.unfound for outcome in lost), len(lost), FOUND_SHARE),
    }
    met = True
    print()
    for target, (reached, total, share) in counts.items():
        met &= reached >= share * total
        print(f"{target}: {reached} of {total}, wanted {share:.0%}")
    unfound = sum(": nothing is there" not in text for outcome in lost for text in outcome.unfound)
    print(f"lost noise by place: {places - unfound} of {places}")
    for target, said in (("healthy", "called damaged or changed"), ("damaged", "called PASS")):
        wrong = {name for kind, name, _ in missed if kind == target}
        total = sum(outcome.is_healthy if target == "healthy" else outcome.is_damaged for outcome in outcomes)
        met &= not wrong
        print(f"{target}: {len(wrong)} of {total} {said}, wanted 0")
    for target, name, text in missed:
        print(f"MISS {target}: {name}: {text}")
    return met


def _row(outcome: Outcome) -> str:
    truth, answer = outcome.truth, outcome.answer
    severity = answer.inspect.get("severity") or {}
    more = _beyond_chance(truth["below_reestimated"])
    ratio = severity.get("ratio")
    found = f"{len(outcome.claims)} for {len(outcome.noise)}" if outcome.noise or outcome.claims else ""
    noise = ", ".join(dict.fromkeys(f"{layer['kind']}:{layer['value']:g}" for layer in outcome.noise))
    now = f"{answer.optimize.get('status', 'error')}" + ("" if answer.gained is None else f" {answer.gained[0]:+.1f}")
    return " | ".join(
        (
            f"| {truth['name']}",
            truth["draw"]["fault"] + (f" ({noise})" if noise else "") + (", ordered" * truth["draw"]["is_ordered"]),
            "lost" if answer.file == "lost.onnx" else truth["draw"]["form"],
            f"{outcome.loss:.1f}" + (f" ({more:.1f})" if more - outcome.loss >= DAMAGE else ""),
            ("" if outcome.is_right else "MISS ") + outcome.said,
            "" if ratio is None else f"{ratio:.2f}",
            str(answer.optimize.get("repaired", "")),
            now,
            found,
            f"{answer.inspect['seconds']:.0f} + {answer.optimize['seconds']:.0f} |",
        )
    )
