"""The BatchNorms that a fold looks at: those of the main graph and those in the subgraphs of If, Loop and Scan."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_graphsurgeon as gs

from vsfix.graph_passes.batch_norm.batch_norm import (
    BatchNorm,
    Parameters,
    is_in_training_form,
    read_batch_norms,
    read_parameters,
)
from vsfix.graph_passes.ir.graph import is_batch_norm, name_of
from vsfix.graph_passes.ir.graph_pass import Skipped
from vsfix.graph_passes.ir.subgraphs import GraphTree

TRAINING_FORM = "it is in training form: it normalises with the statistics of the batch, or hands them on"


@dataclass(frozen=True, eq=False)
class FoldCandidate:
    """A BatchNorm and the graph that it stands in."""

    batch_norm: BatchNorm
    graph: gs.Graph


def find_fold_candidates(tree: GraphTree) -> tuple[tuple[FoldCandidate, ...], tuple[Skipped, ...]]:
    """The BatchNorms of a tree in order, and those that can't be folded whatever stands around them.

    Those of the main graph have the names that `find_batch_norms` gives them; one of a subgraph whose name is taken
    is called after its output, and after the node whose subgraph it is where that is taken too.
    """
    candidates: list[FoldCandidate] = []
    skipped: list[Skipped] = []
    taken: set[str] = set()
    for branch in tree.branches:
        readings = [(node, _read(tree, node)) for node in branch.graph.nodes if is_batch_norm(node)]
        prefix = "" if branch.owner is None else name_of(branch.owner)
        for node, reading in readings:
            if isinstance(reading, str):
                skipped.append(Skipped(name_of(node), reading))
        for batch_norm in read_batch_norms(readings):
            names = [batch_norm.name, str(batch_norm.output.name), f"{prefix}/{batch_norm.output.name}"]
            name = next((name for name in names if name not in taken), f"{prefix}/{branch.graph.name}/{names[1]}")
            taken.add(name)
            named = BatchNorm(name, batch_norm.node, batch_norm.parameters)
            candidates.append(FoldCandidate(named, branch.graph))
    return tuple(candidates), tuple(skipped)


def _read(tree: GraphTree, node: gs.Node) -> Parameters | str:
    """The parameters of a BatchNormalization, or why it can't be folded."""
    return TRAINING_FORM if is_in_training_form(tree.root, node) else read_parameters(node)
