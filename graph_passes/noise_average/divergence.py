"""What an output of a network means, and how far an output is from what it should be.

    kind             what the output is                              D(F, q), mean over the positions of a sample
    classes          scores of classes, before or after the softmax   KL(F || q) = sum_c F_c log(F_c / q_c)
    probabilities    chances that are independent of each other       the same for each of them and its complement
    directions       a vector, as an embedding of length 1            (F - q)^2 / s2, all brought to length 1, F too:
                                                                      a mean of directions is shorter than they are
    values           anything else                                    (F - q)^2 / s2, s2 the variance of the noise in it

F is a mean over draws of the noise, of probabilities for the first two kinds. Two halves A and B of the draws, which
are independent, keep its own scatter out of D, to first order:

    values, directions  D = <F_A - q, F_B - q> / s2, whose mean is |F - q|^2 / s2
    others              entropy of F from F_A log F_A and from F_A log F_B, whose errors are equal, of opposite sign
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

import numpy as np
import onnx_graphsurgeon as gs

from vsfix.graph_passes.errors import InputError, UncomparableError
from vsfix.graph_passes.ir.graph import is_standard
from vsfix.graph_passes.ir.runtime import Array, Float64Array

_TINY = 1e-12  # of a probability
_PASSED = frozenset("Identity Cast Reshape Flatten Squeeze Unsqueeze Transpose Dropout Slice".split())
_LINEAR = frozenset(
    "Gemm MatMul Add Conv ConvTranspose GlobalAveragePool ReduceMean AveragePool Resize Upsample".split()
)
_ROUNDING = 1e-3  # of a probability, in half precision
_SUM_ROUNDING = 1e-2  # of all of them
_TOLD = "as was said"
_LEAST_CLASSES = 3
_CENTRED = 0.5  # the mean over the classes varies by less than half of what it would, were they independent
_UNIT = 1e-3  # by which the length of a direction may miss 1, in half precision
_CONFIDENT = 2.0  # the largest probability, in units of one class of equals


class Meaning(Enum):
    """What an output of a network means; see the module's docstring."""

    CLASSES = "classes"
    PROBABILITIES = "probabilities"
    DIRECTIONS = "directions"
    VALUES = "values"

    @property
    def is_squared(self) -> bool:
        """Whether D is a squared error, over the variance of the noise."""
        return self in (Meaning.DIRECTIONS, Meaning.VALUES)


@dataclass(frozen=True)
class OutputKind:
    """How an output is read.

    Attributes:
        meaning: what it is.
        form: `logits`, `probabilities` or `log` (of probabilities); `values` where it is taken as it is; `directions`.
        axis: of the classes; the last one elsewhere.
        reason: how that was recognised, in words.
        is_guessed: whether nothing but the values tells.
    """

    meaning: Meaning
    form: str
    axis: int
    reason: str
    is_guessed: bool = False

    def probabilities(self, output: Array) -> Float64Array:
        """The output in the form in which draws are averaged, the classes on the last axis, float64."""
        values = output.astype(np.float64)
        if self.meaning is Meaning.VALUES:
            return values
        if self.meaning is Meaning.DIRECTIONS:
            return _of_length_1(values)
        if self.meaning is Meaning.PROBABILITIES:
            return np.asarray(0.5 * (1 + np.tanh(0.5 * values))) if self.form == "logits" else values
        values = np.moveaxis(values, self.axis, -1)
        if self.form == "probabilities":
            return values
        if self.form == "log":
            return np.exp(values)
        spread = np.exp(values - values.max(axis=-1, keepdims=True))
        return np.asarray(spread / spread.sum(axis=-1, keepdims=True))

    def decisions(self, probabilities: Float64Array) -> Array | None:
        """What is decided, from the result of `probabilities`; None where nothing is."""
        if self.meaning is Meaning.CLASSES:
            decided: Array = probabilities.argmax(axis=-1)
            return decided
        return probabilities > 0.5 if self.meaning is Meaning.PROBABILITIES else None


_PLAIN = OutputKind(Meaning.VALUES, "values", -1, "nothing says that it is anything else")
_DIRECTIONS = OutputKind(Meaning.DIRECTIONS, "directions", -1, "vectors of length 1")


@dataclass(frozen=True)
class NoisyOutputs:
    """One output under every draw of the noise.

    Attributes:
        kind: how it is read.
        draws: in the form of `OutputKind.probabilities`, shape (K, N, ...), K even; A are the even draws, B the odd.
    """

    kind: OutputKind
    draws: Array

    def __post_init__(self) -> None:
        if len(self.draws) < 2 or len(self.draws) % 2:
            raise InputError(f"{len(self.draws)} draws of the noise: an even number is needed, 2 at least")

    @property
    def halves(self) -> tuple[Float64Array, Float64Array]:
        """F_A and F_B, each (N, ...)."""
        return self._mean(self.draws[0::2]), self._mean(self.draws[1::2])

    @property
    def mean(self) -> Float64Array:
        """F, shape (N, ...)."""
        return self._mean(self.draws)

    @property
    def noise_variance(self) -> float:
        """s2: the variance over the draws, mean over everything; above 0."""
        return max(float(self._spread().mean()), _TINY**2)

    def distance(self, found: Float64Array, *, unit: float | None = None) -> Float64Array:
        """D(F, q) of each sample, shape (N,); in the mean 0 for F itself, single values may be negative.

        Args:
            found: q, in the form of `draws`, shape (N, ...).
            unit: s2, where it is not to be that of these samples.
        """
        a, b = self.halves
        if self.kind.meaning.is_squared:
            return _per_sample((a - found) * (b - found)) / (unit or self.noise_variance)
        return self._entropy(a, b) + _cross_entropy(0.5 * (a + b), found, self.kind)

    def noise_distance(self, *, unit: float | None = None) -> Float64Array:
        """E_n D(F, f(.; n)) of each sample, shape (N,): what one draw of the noise does."""
        if self.kind.meaning.is_squared:
            return _per_sample(self._spread()) / (unit or self.noise_variance)
        a, b = self.halves
        crossed = [
            _cross_entropy(other, half, self.kind)
            for other, halves in ((a, self.draws[1::2]), (b, self.draws[0::2]))
            for half in halves
        ]
        return np.asarray(self._entropy(a, b) + np.mean(crossed, axis=0))

    def _mean(self, draws: Array) -> Float64Array:
        """The mean over draws, in the form of one of them."""
        mean = np.asarray(draws.mean(axis=0, dtype=np.float64))
        return _of_length_1(mean) if self.kind.meaning is Meaning.DIRECTIONS else mean

    def _spread(self) -> Float64Array:
        """The squared distance of a draw from F, mean over the draws, (N, ...); of directions over their values too."""
        if self.kind.meaning is not Meaning.DIRECTIONS:
            return np.asarray(self.draws.var(axis=0, dtype=np.float64, ddof=1))
        count, total = len(self.draws), self.draws.sum(axis=0, dtype=np.float64)
        own = (self.draws.astype(np.float64) ** 2).sum(axis=(0, -1))
        # Of two draws <n, n'> = |E n|^2 in the mean, and |n - F|^2 = 1 - 2 |E n| + 1.
        squared = ((total**2).sum(axis=-1) - own) / (count * (count - 1))
        length = np.sqrt(np.maximum(squared, 0.0))
        return np.asarray((2 - 2 * np.minimum(length, 1.0)) / total.shape[-1])

    def _entropy(self, a: Float64Array, b: Float64Array) -> Float64Array:
        """sum F log F of each sample, its error of first order taken out."""
        own = -(_cross_entropy(a, a, self.kind) + _cross_entropy(b, b, self.kind)) / 2
        crossed = -(_cross_entropy(a, b, self.kind) + _cross_entropy(b, a, self.kind)) / 2
        return (own + crossed) / 2


def _cross_entropy(target: Float64Array, found: Array, kind: OutputKind) -> Float64Array:
    """-sum target log found of each sample; both chances of each for independent probabilities."""
    q = np.clip(found.astype(np.float64), _TINY, 1.0)
    terms = -target * np.log(q)
    if kind.meaning is Meaning.PROBABILITIES:
        terms = terms - (1 - target) * np.log(np.clip(1 - found.astype(np.float64), _TINY, 1.0))
        return _per_sample(terms)
    return _per_sample(terms.sum(axis=-1))


def are_directions(output: Array) -> bool:
    """Whether each sample is a vector of length 1 with values below 0, shape (N, C): no scores of classes."""
    if output.ndim != 2 or output.shape[1] < 2 or not len(output) or output.dtype.kind != "f":
        return False
    lengths = np.linalg.norm(output.astype(np.float64), axis=1)
    return bool(np.abs(lengths - 1).max() < _UNIT and output.min() < 0)


def _of_length_1(vectors: Array) -> Float64Array:
    """Vectors on the last axis, brought to length 1; one of zeros stays as it is."""
    lengths = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return np.asarray(vectors / np.where(lengths > 0, lengths, 1.0))


def _per_sample(values: Float64Array) -> Float64Array:
    """The mean over everything but the samples, shape (N,)."""
    return np.asarray(values.reshape(len(values), -1).mean(axis=1))


def recognise_outputs(
    graph: gs.Graph, outputs: Mapping[str, Array], told: Mapping[str, str] | None = None
) -> dict[str, OutputKind]:
    """How each floating-point output is read.

    Args:
        graph: the model.
        outputs: what it gives on some samples, by name; what is not there, and whole numbers, are no output that could
            be averaged.
        told: the meaning of outputs, by name, where a person says it.

    Raises:
        InputError: a meaning of an output that is not there, or of another kind.
        UncomparableError: an output that is not finite.
    """
    told = told or {}
    for name in told:
        if name not in outputs:
            raise InputError(f"output '{name}': the model has {', '.join(outputs)}")
    kinds: dict[str, OutputKind] = {}
    for tensor in graph.outputs:
        values = outputs.get(tensor.name)
        if values is None or values.dtype.kind != "f":
            continue
        if not np.isfinite(values).all():
            raise UncomparableError(f"output '{tensor.name}' is not finite on this data")
        kinds[tensor.name] = _recognise(tensor, values, told.get(tensor.name))
    return kinds


def _recognise(tensor: gs.Variable, values: Array, told: str | None) -> OutputKind:
    """How one output is read: as a person says, as its last nodes say, or as its values look."""
    ends = _last_nodes(tensor)
    last = ends[0] if ends else None
    by_graph = _from_graph(last, values)
    if told is None:
        return by_graph or _from_values(ends, values)
    meanings = {meaning.value: meaning for meaning in Meaning}
    if told not in meanings:
        raise InputError(f"output '{tensor.name}': '{told}' is none of {', '.join(meanings)}")
    meaning = meanings[told]
    if by_graph is not None and by_graph.meaning is meaning:
        return by_graph
    if meaning is Meaning.VALUES:
        return OutputKind(meaning, "values", -1, _TOLD)
    if meaning is Meaning.DIRECTIONS:
        if values.ndim != 2 or values.shape[1] < 2:
            raise InputError(f"output '{tensor.name}' of shape {values.shape} is no vector of each sample")
        return OutputKind(meaning, "directions", -1, _TOLD)
    if meaning is Meaning.PROBABILITIES:
        return OutputKind(meaning, "probabilities" if _in_unit_interval(values) else "logits", -1, _TOLD)
    if values.ndim < 2:
        raise InputError(f"output '{tensor.name}' of shape {values.shape} has no axis of classes")
    axis = 1 if values.ndim != 3 else -1
    for form, scores in (("probabilities", values), ("log", np.exp(np.minimum(values, 1)))):
        found = _axis_of_classes(scores, axis)
        if found is not None:
            return OutputKind(meaning, form, found, _TOLD)
    return OutputKind(meaning, "logits", axis, _TOLD)


def _in_unit_interval(values: Array) -> bool:
    """Whether values may be probabilities, but for rounding."""
    return bool(values.min() >= -_ROUNDING and values.max() <= 1 + _ROUNDING)


def _axis_of_classes(values: Array, likely: int) -> int | None:
    """The axis along which values are probabilities that sum to 1, the likely one first; None where there is none."""
    if not _in_unit_interval(values):
        return None
    for axis in (likely, *range(values.ndim - 1, 0, -1)):
        if np.abs(values.sum(axis=axis, dtype=np.float64) - 1).max() < _SUM_ROUNDING:
            return int(axis)
    return None


def _last_nodes(tensor: gs.Variable) -> list[gs.Node]:
    """The node that writes an output, seen through reshapes, and the one upstream of it."""
    found: list[gs.Node] = []
    while isinstance(tensor, gs.Variable) and tensor.inputs and len(found) < 2:
        node = tensor.inputs[0]
        if not is_standard(node):
            break
        if node.op not in _PASSED:
            found.append(node)
        if not node.inputs:
            break
        tensor = node.inputs[0]
    return found


def _from_graph(last: gs.Node | None, values: Array) -> OutputKind | None:
    """How the last node of an output says that it is read."""
    if last is None:
        return None
    if last.op in ("Softmax", "LogSoftmax") and values.ndim >= 2:
        axis = int(last.attrs.get("axis", -1))
        axis = axis if -values.ndim <= axis < values.ndim else -1
        form = "probabilities" if last.op == "Softmax" else "log"
        found = _axis_of_classes(values if form == "probabilities" else np.exp(np.minimum(values, 1)), axis)
        if found is not None:  # a view behind the node may have moved the classes
            return OutputKind(Meaning.CLASSES, form, found, f"{last.op} ends it")
        if form == "probabilities":  # some of the classes, or what sums to 1 over several axes
            return OutputKind(Meaning.PROBABILITIES, form, -1, "a part of a Softmax ends it")
        return None
    if last.op in ("Sigmoid", "HardSigmoid"):
        return OutputKind(Meaning.PROBABILITIES, "probabilities", -1, f"{last.op} ends it")
    return None


def recognise_values(values: Array) -> OutputKind:
    """How an output is read of which nothing but some values is known, as of an engine.

    Args:
        values: shape (N, ...), finite.
    """
    axis = _axis_of_classes(values, 1 if values.ndim != 3 else -1) if values.ndim >= 2 else None
    if axis is not None and values.shape[axis] >= _LEAST_CLASSES - 1:
        reason = f"each sample's values sum to 1 over {values.shape[axis]}"
        return OutputKind(Meaning.CLASSES, "probabilities", axis, reason, is_guessed=True)
    if are_directions(values):
        return _DIRECTIONS
    return _scores_of_classes(values) or _PLAIN


def _from_values(ends: Sequence[gs.Node], values: Array) -> OutputKind:
    """Scores of classes leave a linear layer; vectors of length 1 are directions; all else is taken as it is."""
    if are_directions(values):
        return _DIRECTIONS
    if not ends or ends[0].op not in _LINEAR:
        return _PLAIN
    return _scores_of_classes(values, "a linear layer ends it, and ") or _PLAIN


def _scores_of_classes(values: Array, how: str = "") -> OutputKind | None:
    """Training leaves the mean of the scores of classes alone and spreads them about it; None where these are none.

    The gradient of the cross-entropy sums to 0 over the classes, so that the mean of a sample's scores stays where it
    began while the scores grow apart.
    """
    if values.ndim not in (2, 4) or values.shape[1] < _LEAST_CLASSES:
        return None
    scores = np.moveaxis(values.astype(np.float64), 1, -1).reshape(-1, values.shape[1])
    classes = scores.shape[1]
    scale = float(scores.var(axis=0).mean()) / classes
    share = float(scores.mean(axis=1).var()) / scale if scale > 0 else np.inf
    spread = np.exp(scores - scores.max(axis=1, keepdims=True))
    confidence = float(np.mean(1 / spread.sum(axis=1))) * classes
    if share >= _CENTRED or confidence <= _CONFIDENT:
        return None
    reason = f"scores of {classes} classes: {how}their mean varies by {share:.2f} of what independent values would"
    return OutputKind(Meaning.CLASSES, "logits", 1, reason, is_guessed=True)
