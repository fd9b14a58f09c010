"""One step of the GPU benchmark: an engine against torch, two engines in turn, or training in the Python with torch."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
from steps import ENGINES, Found, Step, model_path

from vsfix.graph_passes.errors import BuildError, MissingComponentError
from vsfix.graph_passes.ir.runtime import Array, Runner
from vsfix.pipeline.backends.opening import open_runner
from vsfix.pipeline.backends.tensorrt_runner import open_engine
from vsfix.pipeline.benchmark.latency import LatencyConfig, measure_latencies
from vsfix.pipeline.building.build_config import BuildConfig
from vsfix.pipeline.building.building import build_engine
from vsfix.pipeline.comparison.decisions import compare_decisions
from vsfix.pipeline.comparison.tensor_comparison import compare_tensors
from vsfix.pipeline.data.samples import Samples
from vsfix.pipeline.tensorrt.shape_profile import ShapeOptions
from vsfix.pipeline.verification.verification import pooled_outputs

MAX_BATCH = 256
TRAINING = ("--blocks", "9", "--block", "0.5", "--no-compile")


@dataclass(frozen=True)
class Place:
    """Where the benchmark runs, and how much of it.

    Attributes:
        kit: what `prepare.py` made.
        results: where engines, outputs of torch and results go.
        torch_python: a Python with torch.
        device: of torch.
        images: how many test images; None for all.
        latency: how long a latency is measured.
        training: options of `training_speed.py`.
    """

    kit: Path
    results: Path
    torch_python: str
    device: str = "cuda"
    images: int | None = None
    latency: LatencyConfig = field(default_factory=lambda: LatencyConfig(seconds=1.5))
    training: Sequence[str] = TRAINING

    def make_references(self, networks: Sequence[str]) -> None:
        """Has torch compute what every engine is held against, unless it did.

        Raises:
            MissingComponentError: that Python or its torch does not do it; its last line is quoted.
        """
        if all((self.results / name / "torch.npz").exists() for name in networks):
            return
        count = () if self.images is None else ("--images", str(self.images))
        self.run("reference.py", str(self.kit), str(self.results), "--device", self.device, *count)

    def run(self, script: str, *arguments: str) -> None:
        """Runs a script of this folder in the Python with torch; exit code 1 is a missed target and no failure."""
        command = [self.torch_python, str(Path(__file__).with_name(script)), *arguments]
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False)
        except OSError as error:
            raise MissingComponentError(
                f"{self.torch_python}: {error.strerror}; name one with --torch-python"
            ) from None
        if done.returncode not in (0, 1) or "Traceback" in done.stderr:
            said = (done.stderr.strip() or done.stdout.strip()).splitlines()
            raise MissingComponentError(f"{script}: {said[-1] if said else 'no word of what is wrong'}")

    def measure(self, step: Step) -> Found:
        """Takes a step.

        Raises:
            VsfixError: it can't be taken.
        """
        if step.kind in ("training", "uout"):
            return self._training(step)
        return self._numbers(step) if step.kind == "numbers" else self._latency(step)

    def feeds(self, count: int | None = None) -> tuple[dict[str, Array], Array]:
        """The first test images and their labels."""
        with np.load(self.kit / "images.npz") as arrays:
            rows = slice(count or self.images)
            return {"input": arrays["input"][rows]}, arrays["labels"][rows]

    def shapes(self) -> ShapeOptions:
        """Those that engines are built for: one image, 64, and as many as a run takes."""
        image = "x".join(map(str, self.feeds(1)[0]["input"].shape[1:]))
        return ShapeOptions(None, *(f"input:{batch}x{image}" for batch in (1, 64, MAX_BATCH)))

    def open(self, step: Step, form: str, *, use_graph: bool = False) -> Runner:
        """A network on a backend; its engine is built where that was not done yet."""
        model = model_path(self.kit, step.network, form, step.precision)
        if step.backend not in ENGINES:
            return open_runner(step.backend, model)
        plan_path = self.engine_path(step, form)
        if not plan_path.exists():
            plan_path.parent.mkdir(parents=True, exist_ok=True)
            # Both forms share the timings of kernels, so that the same tactics are chosen.
            cache = self.results / "timings" if step.backend == "tensorrt" else None
            config = BuildConfig(step.backend, self.shapes(), precision=step.precision, timing_cache=cache)
            build_engine(model, plan_path, config)
        return open_engine(plan_path, step.backend, use_graph=use_graph)

    def engine_path(self, step: Step, form: str) -> Path:
        """Where an engine stands."""
        return self.results / step.network / f"{form}-{step.backend}-{step.precision}.plan"

    def _numbers(self, step: Step) -> Found:
        """One network on the images, against torch with the same parameters."""
        inputs, labels = self.feeds()
        with np.load(self.results / step.network / "torch.npz") as arrays:
            expected, torch = arrays[step.form], str(arrays["torch"])
        if len(expected) != len(labels):
            raise BuildError(f"{self.results}: torch computed {len(expected)} images, not {len(labels)}; delete it")
        with self.open(step, step.form) as runner:
            samples = Samples("test images", inputs, labels)
            found, name = next(iter(pooled_outputs(runner, samples, MAX_BATCH).values())), runner.name
        tensors, decisions = compare_tensors(expected, found), compare_decisions(expected, found, labels)
        assert decisions.task is not None
        return {
            "runner": name,
            "torch": torch,
            "samples": len(labels),
            "snr_db": tensors.snr_db,
            "max_rel": tensors.max_rel,
            "agreement": decisions.agreement,
            "flips": decisions.flips,
            "top1_torch": 100 * decisions.task.reference.value,
            "top1": 100 * decisions.task.output.value,
            "p_value": decisions.task.p_value,
        } | self._engine_facts(step)

    def _engine_facts(self, step: Step) -> Found:
        """What the sidecar of an engine says of its build."""
        if step.backend not in ENGINES:
            return {}
        path = self.engine_path(step, step.form)
        document = json.loads(path.with_name(path.name + ".json").read_text())
        return {key: document[key] for key in ("build_seconds", "precision", "version")} | {
            "bytes": document["plan"]["bytes"],
            "read_back": {key: document["read_back"][key] for key in ("status", "largest_error")},
        }

    def _latency(self, step: Step) -> Found:
        """Both forms open at once, in alternating blocks."""
        inputs, _ = self.feeds(step.batch)
        with ExitStack() as stack:
            forms = ("original", "repaired")
            runners = [stack.enter_context(self.open(step, form, use_graph=True)) for form in forms]
            original, repaired = measure_latencies(runners, inputs, self.latency)
        ratio = {"ratio": repaired.ratio, "interval": repaired.ratio_interval}
        return ratio | {"original": asdict(original), "repaired": asdict(repaired)}

    def _training(self, step: Step) -> Found:
        """What `training_speed.py` finds."""
        folder = self.results / step.kind
        only = "throughput" if step.kind == "training" else "uout"
        self.run("training_speed.py", str(folder), "--device", self.device, "--only", only, *self.training)
        found: Found = json.loads((folder / "training_speed.json").read_text())
        return found
