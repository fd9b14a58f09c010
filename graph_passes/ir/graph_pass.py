"""The contract of a graph pass.

A pass is a callable `(graph) -> PassResult` with a `name`. It edits the graph in place and keeps three promises:

1. it changes only what its result names under `changed`, each with what was done;
2. what it looked at and did not change stands under `skipped`, each with the reason;
3. run a second time it changes nothing.

`PassPipeline` runs passes in order and is itself a pass. When one fails, the error names those that ran before it, for
the graph is then half edited and must be thrown away.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import onnx_graphsurgeon as gs

from vsfix.graph_passes.errors import VsfixError


@dataclass(frozen=True)
class Change:
    """One thing that a pass changed: the node or tensor, and what was done to it."""

    subject: str
    action: str


@dataclass(frozen=True)
class Skipped:
    """One thing that a pass looked at and did not change, with the reason."""

    subject: str
    reason: str


@dataclass(frozen=True)
class PassResult:
    """The changes of a pass and what it skipped; `modified` is true where there is a change."""

    pass_name: str
    changed: tuple[Change, ...] = ()
    skipped: tuple[Skipped, ...] = ()

    @property
    def modified(self) -> bool:
        """Whether anything changed."""
        return bool(self.changed)


class GraphPass(Protocol):
    """A pass over one graph; it keeps the three promises of the module's docstring."""

    @property
    def name(self) -> str:
        """The name that reports use."""

    def __call__(self, graph: gs.Graph) -> PassResult:
        """Edits `graph` in place and says what was done."""


class PassPipeline:
    """Passes that run one after the other; a pass itself.

    Attributes:
        name: the names of its passes, joined by arrows.
        passes: the passes in the order in which they run.
        results: the result of each pass in the last run.
    """

    def __init__(self, passes: Sequence[GraphPass]) -> None:
        self.passes = tuple(passes)
        self.name = " -> ".join(graph_pass.name for graph_pass in self.passes)
        self.results: tuple[PassResult, ...] = ()

    def results_of(self, name: str) -> tuple[PassResult, ...]:
        """The results of the passes of a name in the last run."""
        return tuple(result for result in self.results if result.pass_name == name)

    def __call__(self, graph: gs.Graph) -> PassResult:
        """Runs every pass on `graph`.

        Raises:
            VsfixError: of the class that the failing pass raised, with the passes that ran before it in the message.
        """
        self.results = ()
        for graph_pass in self.passes:
            try:
                self.results += (graph_pass(graph),)
            except VsfixError as error:
                before = ", ".join(result.pass_name for result in self.results) or "none"
                raise type(error)(f"{graph_pass.name}: {error} (passes that ran before: {before})") from error
        return PassResult(
            pass_name=self.name,
            changed=tuple(change for result in self.results for change in result.changed),
            skipped=tuple(entry for result in self.results for entry in result.skipped),
        )
