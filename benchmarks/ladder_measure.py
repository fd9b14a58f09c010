"""The measurements of the ladder: each is one line of results.jsonl and one file of scores, and is taken once."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from ladder_networks import Rung
from ladder_scores import Scores, judge, noisy_scores, plain_outputs
from ladder_tasks import INPUT, Array, Task

from vsfix.graph_passes.errors import VsfixError
from vsfix.graph_passes.statistics.batches import Batch
from vsfix.pipeline.backends.onnxruntime_runner import open_for_small_runs
from vsfix.pipeline.repair.repair import repair_model
from vsfix.pipeline.repair.repair_config import METHODS, RepairConfig

BATCH_SIZE = 256
AS_TRAINED, ONE_PASS, NOISE_AVERAGE = "as trained", "one noisy pass", "mean of 32 passes"


@dataclass(frozen=True)
class Column:
    """One way to repair.

    Attributes:
        name: as the table shows it.
        rows: unlabelled training rows; 0 for none, None for all.
        options: of `RepairConfig`.
        seeded: whether it is measured under several seeds.
    """

    name: str
    rows: int | None
    options: Mapping[str, Any]
    seeded: bool = True

    @property
    def is_possible(self) -> bool:
        """Whether the installed vsfix knows the method and the options."""
        known = {entry.name for entry in fields(RepairConfig)}
        return self.options["method"] in METHODS and set(self.options) <= known


ORACLE = Column("oracle", None, {"method": "exact", "layers": "all"}, seeded=False)
PAIRED_32 = Column("paired 32", 32, {"method": "paired"})
MATCH_32 = Column("match 32", 32, {"method": "match", "refine": False})
# What users get: match and refine above the bound of R, below it the file as it is.
AUTO_32 = Column("auto 32", 32, {"method": "auto", "refine": True})
AUTO_256 = Column("auto 256", 256, {"method": "auto", "refine": True})
NO_DATA = Column("no data", 0, {"method": "auto", "refine": True})
REPAIRS = (ORACLE, PAIRED_32, MATCH_32, AUTO_32, AUTO_256, NO_DATA)
NAMES = (AS_TRAINED, *(column.name for column in REPAIRS), ONE_PASS, NOISE_AVERAGE)


@dataclass(frozen=True)
class Measurement:
    """One network in one column under one seed.

    Attributes:
        stem: of the network.
        column: one of `NAMES`.
        seed: of the choice of the rows and of the noise.
        metrics: by output, the mean score of the test rows; empty where the repair was refused.
        losses: by output, the mean loss.
        seconds: of the repair.
        unchanged: whether each parameter of the repaired file is that of the given one, bit for bit.
        severity: (R, low, high, bound) of the given file, as the report has it.
        error: why the repair was refused.
    """

    stem: str
    column: str
    seed: int
    metrics: dict[str, float] = field(default_factory=dict)
    losses: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    unchanged: bool = True
    severity: tuple[float, float, float, float] | None = None
    error: str = ""

    @property
    def key(self) -> tuple[str, str, int]:
        """The place of the measurement among all."""
        return self.stem, self.column, self.seed

    def scores_path(self, folder: Path) -> Path:
        """The file with the scores of each test row, `score_OUTPUT` and `loss_OUTPUT`."""
        return folder / "scores" / f"{self.stem}--{self.column.replace(' ', '-')}--{self.seed}.npz"


def read_measurements(folder: Path) -> list[Measurement]:
    """Everything that was measured before."""
    path = folder / "results.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    found = [Measurement(**json.loads(line)) for line in lines]
    return [m for m in found if m.error or m.scores_path(folder).exists()]


def missing(rung: Rung, done: Sequence[Measurement], seeds: int, skip: Sequence[str]) -> Iterator[tuple[str, int]]:
    """Column and seed of each measurement of a network that is possible and not done."""
    keys = {measurement.key for measurement in done}
    wanted = [(AS_TRAINED, 0), (NOISE_AVERAGE, 0)]
    for column in REPAIRS:
        if column.is_possible:
            wanted += [(column.name, seed) for seed in range(seeds if column.seeded else 1)]
    for name, seed in wanted:
        if (rung.stem, name, seed) not in keys and not any(name.startswith(prefix) for prefix in skip):
            yield name, seed


def measure(rung: Rung, model: onnx.ModelProto, task: Task, name: str, seed: int, folder: Path) -> list[Measurement]:
    """Takes one measurement, or the two that come from the same noisy runs, and keeps them."""
    started = time.perf_counter()
    if name == NOISE_AVERAGE:
        single, average = noisy_scores(model, task, seed)
        seconds = time.perf_counter() - started
        kept = [(Measurement(rung.stem, ONE_PASS, seed), single)]
        kept.append((Measurement(rung.stem, NOISE_AVERAGE, seed, seconds=seconds), average))
        return [_keep(measurement, scores, folder) for measurement, scores in kept]
    if name == AS_TRAINED:
        return [_keep(Measurement(rung.stem, name, seed), judge(task, plain_outputs(model, task)), folder)]
    (column,) = (column for column in REPAIRS if column.name == name)
    batches = calibration(task, column.rows, seed)
    try:
        config = RepairConfig(fold=False, seed=seed, **column.options)
        repair = repair_model(model, batches, open_for_small_runs, config)
    except VsfixError as error:
        return [_keep(Measurement(rung.stem, name, seed, error=f"{type(error).__name__}: {error}"), {}, folder)]
    seconds = time.perf_counter() - started
    found = repair.report.severity
    severity = None if found is None else (found.ratio, found.low, found.high, found.bound)
    unchanged = parameters(repair.unfolded) == parameters(model)
    measurement = Measurement(rung.stem, name, seed, seconds=seconds, unchanged=unchanged, severity=severity)
    return [_keep(measurement, judge(task, plain_outputs(repair.runnable, task)), folder)]


def calibration(task: Task, rows: int | None, seed: int) -> list[Batch]:
    """Training rows, chosen and shuffled under the seed, without their targets."""
    if rows == 0:
        return []
    order = np.random.default_rng(1000 + seed).permutation(len(task.inputs))[:rows]
    return [{INPUT: task.inputs[order[start : start + BATCH_SIZE]]} for start in range(0, len(order), BATCH_SIZE)]


def parameters(model: onnx.ModelProto) -> dict[str, bytes]:
    """The bytes of each float initializer by its name."""
    arrays = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    return {name: array.tobytes() for name, array in arrays.items() if array.dtype.kind == "f"}


def _keep(measurement: Measurement, scores: Mapping[str, Scores], folder: Path) -> Measurement:
    """Writes the scores and the line, in that order, and returns the measurement with its means."""
    means = {
        "metrics": {name: float(each.score.mean()) for name, each in scores.items()},
        "losses": {name: float(each.loss.mean()) for name, each in scores.items()},
    }
    if scores:
        path = measurement.scores_path(folder)
        path.parent.mkdir(exist_ok=True)
        arrays: dict[str, Array] = {f"score_{name}": each.score for name, each in scores.items()}
        arrays |= {f"loss_{name}": each.loss for name, each in scores.items()}
        np.savez_compressed(path, allow_pickle=False, **arrays)
    line = asdict(measurement) | means
    with (folder / "results.jsonl").open("a") as file:
        file.write(json.dumps(line) + "\n")
    return Measurement(**line)
