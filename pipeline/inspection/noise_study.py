"""One look at a network through its noise: F, R, the targets of its layers, stored statistics against noisy ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import onnx_graphsurgeon as gs

from vsfix.graph_passes.batch_norm.batch_norm import find_modules
from vsfix.graph_passes.errors import DataError
from vsfix.graph_passes.estimators.layers import UnitOutputs
from vsfix.graph_passes.estimators.matching import TargetCollector
from vsfix.graph_passes.estimators.unit_fit import UnitTarget, moved
from vsfix.graph_passes.estimators.units import (
    FoundParameters,
    Unit,
    by_module,
    find_units,
    write_parameters,
)
from vsfix.graph_passes.folding.linear_layer import LINEAR_OPERATORS
from vsfix.graph_passes.ir.runtime import Array, OpenModel
from vsfix.graph_passes.measurement.activation_cache import DEFAULT_MAX_MEMORY
from vsfix.graph_passes.noise.analysis import analyse_noise
from vsfix.graph_passes.noise_average.divergence import OutputKind, recognise_outputs
from vsfix.graph_passes.noise_average.noise_average import DRAWS, NoiseAverage, draws_for, run_deployed
from vsfix.graph_passes.noise_average.samples import SampleSet
from vsfix.graph_passes.noise_average.severity import DrawCollector, OutputReader, Reference, Severity
from vsfix.graph_passes.noise_average.stored_statistics import StoredAgainstNoisy, compare_stored, measure_noisy
from vsfix.graph_passes.noise_inference.residuals import Residual, residuals_of
from vsfix.graph_passes.progress import stage
from vsfix.graph_passes.statistics.batches import Batch, prescribed_batch_size, samples_in
from vsfix.graph_passes.statistics.moments import Moments

LEAST, FEW = 2, 8  # samples: none below, and a warning below
CONTRADICTED = 0.2  # of the logarithm of a variance: what noise that is the right one leaves below it
ROOM = 16  # the part of the memory for what is upstream of the noise
MOST = 1024  # samples: more bring next to nothing, take memory for each, and leave fewer positions of each


@dataclass(frozen=True)
class LayerRow:
    """How far what one layer gives is from the averaged network; see `UnitOutputs.distances`."""

    name: str
    before: float
    after: float


@dataclass(frozen=True, eq=False)
class StudiedRun:
    """A graph with its noise off over the samples of a study.

    Attributes:
        outputs: by name; see `DeployedRun`.
        moments: of every BatchNorm input, by the name of the BatchNorm.
        distances: of each unit from F, by its name.
    """

    outputs: Mapping[str, Array]
    moments: Mapping[str, Moments]
    distances: Mapping[str, float]


@dataclass(frozen=True, eq=False)
class NoiseStudy:
    """F of one graph on one set, and everything that is compared with it.

    Attributes:
        graph: as it was looked at.
        samples: in their own order, `MOST` of them at most.
        average: F.
        units: whose scale and shift are free.
        targets: of the units, by name.
        reference: the outputs of F.
        outputs: of the deployed network.
        kinds: how the outputs are read.
        severity: R.
        distances: of each unit from F with the noise off, by name; see `UnitOutputs.distances`.
        moments_off: of every BatchNorm input with the noise off, by the name of the BatchNorm.
        moments_on: the same with the noise on, each BatchNorm as it is.
        stored: what each BatchNorm stores against what it sees with the noise on.
        seed: of the noise.
        open_model: the runtime.
        told: the meanings of outputs that a person said, by name.
        max_memory: bytes that the process may hold; activations beyond go to the disk.
    """

    graph: gs.Graph
    samples: SampleSet
    average: NoiseAverage
    units: tuple[Unit, ...]
    targets: Mapping[str, UnitTarget]
    reference: Reference
    outputs: Mapping[str, Array]
    kinds: Mapping[str, OutputKind]
    severity: Severity
    distances: Mapping[str, float]
    moments_off: Mapping[str, Moments]
    moments_on: Mapping[str, Moments]
    stored: tuple[StoredAgainstNoisy, ...]
    seed: int
    open_model: OpenModel
    told: Mapping[str, str]
    max_memory: int

    @classmethod
    def of(
        cls,
        graph: gs.Graph,
        batches: Sequence[Batch],
        open_model: OpenModel,
        seed: int,
        output_kinds: Mapping[str, str],
        max_memory: int = DEFAULT_MAX_MEMORY,
        *,
        needs_targets: bool = True,
        may_end_early: bool = False,
    ) -> NoiseStudy:
        """Runs the network with its noise off, and with it on as often as a fixed rule says.

        Without targets, which are what a match needs, R is the same and costs less. Where it may end early, it does so
        after a quarter of the draws if they say clearly that the network is healthy, and show noise in most samples.

        Raises:
            DataError: too few samples, outputs that are not finite, or noise that changes nothing.
        """
        prescribed = prescribed_batch_size(graph)
        samples = SampleSet.of(batches, prescribed).without_copies(prescribed).first_of(MOST, prescribed)
        if len(samples) < LEAST:
            raise DataError(f"{len(samples)} sample: nothing can be told from fewer than {LEAST}; give at least {FEW}")
        average = NoiseAverage(graph, samples, open_model, seed, max_memory // ROOM)
        units = find_units(graph, average.shapes) if needs_targets else ()
        collected = TargetCollector(average, units, samples, seed)
        watch = UnitOutputs(units, collected.chosen, average.shapes, samples_in(samples.batches[0]))
        deployed = run_deployed(graph, samples, open_model, watch)
        outputs = deployed.outputs
        kinds = recognise_outputs(graph, outputs, output_kinds)
        one = multiply_adds(graph, average.shapes) / samples_in(samples.batches[0])
        draws = draws_for(len(samples), one)
        readers = {
            name: OutputReader.of(kind, outputs[name], len(samples), draws, len(kinds)) for name, kind in kinds.items()
        }
        drawn = DrawCollector(readers, draws, len(samples))
        sizes = [samples_in(batch) for batch in samples.batches]
        counts = dict(zip(samples.first, sizes, strict=True))
        first = max(draws // 4 // 2 * 2, DRAWS[0]) if may_end_early else draws
        with stage(f"averaging over {draws} draws of the noise", draws * len(samples.batches)) as averaging:
            reader = average.moments_reader(of_all=False)
            for part in (range(first), range(first, draws)):
                for run in average.runs(part, collected.taps, reader if part.start == 0 else None):
                    drawn.add(run.draw, run.first, counts[run.first], run.arrays)
                    collected.add(run.first, counts[run.first], run.arrays)
                    averaging.step()
                is_last = part.stop >= draws
                if not is_last and not drawn.tell_noise(part.stop, average.reached_outputs):
                    continue
                reference = drawn.reference(part.stop)
                severity = reference.severity(outputs, seed, is_first=not is_last)
                if severity.is_clear or is_last:
                    break
        average.forget()
        targets = collected.result()
        moments_on = {**deployed.moments, **reader.result()} if reader.outputs else deployed.moments
        study = cls(
            graph=graph,
            samples=samples,
            average=average,
            units=units,
            targets=targets,
            reference=reference,
            outputs=outputs,
            kinds=kinds,
            severity=severity,
            distances=watch.distances(targets),
            moments_off=deployed.moments,
            moments_on=moments_on,
            stored=compare_stored(graph, moments_on),
            seed=seed,
            open_model=open_model,
            told=output_kinds,
            max_memory=max_memory,
        )
        if not any(row.differs for row in study.stored):
            return study
        # A BatchNorm upstream that is off moves those downstream of it: each is looked at by itself.
        return replace(study, stored=compare_stored(graph, study.corrected))

    @cached_property
    def corrected(self) -> dict[str, Moments]:
        """The moments of every BatchNorm input with the noise on, each downstream of corrected BatchNorms."""
        return measure_noisy(self.graph, self.samples.batches, self.open_model, self.seed, self.max_memory)

    @property
    def residuals(self) -> dict[str, Residual]:
        """The residual of each BatchNorm with the noise on, by its name."""
        return residuals_of(self.graph, self.corrected, len(self.samples))

    @property
    def first_size(self) -> int:
        """How many samples the first run has, which the shapes are of."""
        return samples_in(self.samples.batches[0])

    def run(self, graph: gs.Graph) -> StudiedRun:
        """Runs another graph with the same tensors, with its noise off."""
        chosen = {name: target.chosen for name, target in self.targets.items()}
        watch = UnitOutputs(self.units, chosen, self.average.shapes, self.first_size)
        found = run_deployed(graph, self.samples, self.open_model, watch)
        return StudiedRun(found.outputs, found.moments, watch.distances(self.targets))

    def layer_rows(self, after: Mapping[str, float]) -> tuple[LayerRow, ...]:
        """How far each layer is from F in the graph as it was looked at, and in another one.

        Args:
            after: the distance of each unit there, by its name.
        """
        before = self.distances
        modules = [[unit.name for unit in uses if unit.name in after] for uses in by_module(self.units)]
        return tuple(
            LayerRow(
                names[0],
                float(np.mean([before[name] for name in names])),
                float(np.mean([after[name] for name in names])),
            )
            for names in modules
            if names
        )

    def written(self, parameters: Mapping[str, FoundParameters]) -> gs.Graph:
        """A copy of the graph with other parameters; its tensors keep their names."""
        copy: gs.Graph = self.graph.copy()
        write_parameters(copy, find_units(copy, self.average.shapes), parameters)
        return copy

    def with_moments(
        self, parameters: Mapping[str, FoundParameters], moments_off: Mapping[str, Moments]
    ) -> dict[str, FoundParameters]:
        """These parameters with the moments that each BatchNorm's input has in the network that they make.

        The moments change what is stored and not what is computed. They are those of all positions: what looks at the
        written file sees the same.

        Args:
            parameters: by the name of the unit.
            moments_off: of the BatchNorm inputs of that network with the noise off.
        """
        found = {name: replace(one, moments=None) for name, one in parameters.items()}
        off, on = moments_off, self.moments_on
        modules = {module.name: module for module in find_modules(self.written(found))}
        for unit in self.units:
            if unit.batch_norm is not None and unit.name in found and unit.module in modules:
                gamma = modules[unit.module].gamma
                found[unit.name] = replace(found[unit.name], moments=moved(off[unit.module], on[unit.module], gamma))
        return found

    def open_question(self) -> tuple[str, ...]:
        """The note where R is below its bound and yet leaves open whether a repair would gain."""
        if not self.severity.is_open:
            return ()
        guessed = [name for name, kind in self.kinds.items() if kind.is_guessed]
        told = f"; if '{guessed[0]}' is no score of classes, say --output-kind {guessed[0]}=values" if guessed else ""
        return (
            f"{self.severity.doubt}; labelled data tells (--eval-data); without any, --method match takes what is "
            f"nearer to the average{told}",
        )

    def contradiction(self) -> tuple[str, ...]:
        """The note where the statistics fit worse with the noise on than off: for noise that a person said."""
        reached = analyse_noise(self.graph).reached
        off, on = [], []
        for module in find_modules(self.graph):
            found = self.moments_off[module.name], self.moments_on[module.name]
            told = (module.variance > 0) & ~found[0].degenerate & ~found[1].degenerate
            if module.name in reached and told.any():
                ratios = [np.log(one.variance[told] / module.variance[told]) for one in found]
                off.append(float(np.mean(ratios[0] ** 2)))
                on.append(float(np.mean(ratios[1] ** 2)))
        if not on or not np.mean(on) > max(float(np.mean(off)), CONTRADICTED**2):
            return ()
        factors = [float(np.exp(np.sqrt(np.mean(squares)))) for squares in (on, off)]
        return (
            f"the noise that was said contradicts the file: with it on the stored variances are off by a factor of "
            f"{factors[0]:.2f} (root mean square), without any noise by {factors[1]:.2f}; the name of a BatchNorm "
            "stands for noise directly upstream of it, that of another node or tensor for noise on what it writes",
        )

    def output_lines(self) -> tuple[str, ...]:
        """How each output is read, one line each."""
        read = tuple(f"{name}: {kind.meaning.value} ({kind.reason})" for name, kind in self.kinds.items())
        compared = self.reference.outputs
        still = tuple(f"{name}: not compared (no noise reaches it)" for name in self.kinds if name not in compared)
        others = [tensor.name for tensor in self.graph.outputs if tensor.name not in self.kinds]
        return (
            *read,
            *still,
            *(f"{name}: not compared (no number that each sample has of its own)" for name in others),
        )


def multiply_adds(graph: gs.Graph, shapes: Mapping[str, tuple[int, ...]]) -> float:
    """The multiplications of the linear operators in a run of the first batch."""
    total = 0.0
    for node in graph.nodes:
        if node.op not in LINEAR_OPERATORS or node.outputs[0].name not in shapes:
            continue
        out = float(np.prod(shapes[node.outputs[0].name]))
        weight = node.inputs[1]
        sides = tuple(weight.shape) if isinstance(weight, gs.Constant) else shapes.get(weight.name, (1, 1))
        if node.op in ("Gemm", "MatMul"):
            inner = shapes.get(node.inputs[0].name, (1,))[-1]
            total += out * inner
        else:
            total += out * float(np.prod(sides[1:]))
    return total
