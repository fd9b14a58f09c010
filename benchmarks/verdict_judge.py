"""What `vsfix inspect` and `vsfix optimize` say of one network, and what the optimized file is worth.

Refinement is off: it takes most of the time, and no verdict on the file as given rests on it.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from ladder_scores import file_outputs, paired_interval
from ladder_tasks import INPUT, Array
from verdict_tasks import Source, load_source
from verdict_training import scores

LIMIT = 120.0  # seconds of one command
_KEPT = tuple("status verdict warnings fault inferred noise_sources stored severity prepared method".split())


@dataclass(frozen=True)
class Answer:
    """Both commands on one file.

    Attributes:
        name: of the network.
        file: `model.onnx` or `lost.onnx`.
        inspect: `exit`, `seconds`, `error` where there is no JSON, else what of the JSON the table needs.
        optimize: likewise; `repaired` counts the BatchNorms whose parameters changed.
        worth: of the optimized file on the test rows as deployed, top-1 in per cent or 100 R2; None where none was
            written.
        gained: by how many points it is above the file as it was, with a 95 % interval.
    """

    name: str
    file: str
    inspect: dict[str, Any]
    optimize: dict[str, Any]
    worth: float | None
    gained: tuple[float, float, float] | None


def judge_network(place: Path, file: str) -> Answer:
    """Runs both commands, as a user types them."""
    truth = json.loads((place / "truth.json").read_text())
    draw = truth["draw"]
    source = load_source(draw["task"], is_signal=draw["family"] == "one-dimensional")
    model, data = str(place / file), str(place / "data.npz")
    inspected = _run(["inspect", model, "--data", data, "--json", "-"])
    with tempfile.TemporaryDirectory() as folder:
        written = Path(folder) / "optimized.onnx"
        optimized = _run(["optimize", model, "-o", str(written), "--no-refine", "--data", data, "--json", "-"])
        worth = gained = None
        if written.exists():
            given = source.preprocessed(source.task.test_inputs, draw["fault"].split(" and ")[0])
            after, before = (_worth(source, path, given) for path in (written, place / "lost.onnx"))
            worth, gained = float(after.mean()), paired_interval(after, before)
    return Answer(place.name, file, inspected, optimized, worth, gained)


def _run(arguments: Sequence[str]) -> dict[str, Any]:
    started = time.perf_counter()
    try:
        done = subprocess.run(
            [str(Path(sys.executable).with_name("vsfix")), *arguments], capture_output=True, text=True, timeout=LIMIT
        )
    except subprocess.TimeoutExpired:
        return {"exit": None, "seconds": LIMIT, "error": "took too long"}
    seconds = round(time.perf_counter() - started, 1)
    try:
        report = json.loads(done.stdout)
    except json.JSONDecodeError:
        return {"exit": done.returncode, "seconds": seconds, "error": done.stderr.strip()[-500:]}
    kept = {key: report[key] for key in _KEPT if key in report}
    repaired = sum(entry["repaired"] for entry in report.get("batch_norms", []))
    return {"exit": done.returncode, "seconds": seconds, **kept, "repaired": repaired}


def _worth(source: Source, path: Path, inputs: Array) -> Array:
    return scores(source, probabilities(source, file_outputs(onnx.load(path), {INPUT: inputs})[source.output]))


def probabilities(source: Source, outputs: Array) -> Array:
    """Class scores as probabilities, numbers as they are; float64."""
    wide = outputs.astype(np.float64)
    if source.task.kinds[source.output] != "classes":
        return wide
    powers = np.exp(wide - wide.max(1, keepdims=True))
    return np.asarray(powers / powers.sum(1, keepdims=True))


def answer_line(answer: Answer) -> str:
    """One line of JSON."""
    return json.dumps(asdict(answer))
