"""Advice never leads back to itself: what an error or a WARN says to do is done, and something else comes out.

Each situation is a command whose answer holds an advice; the cure is the command that the advice names, with the names
that stand in the answer. Its answer must be another one, and hold the advice no more.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from click.testing import CliRunner
from torch import nn

from vsfix.graph_passes.io.model_file import export_model, import_graph
from vsfix.graph_passes.noise.marker import RemoveMarkers
from vsfix.pipeline.cli.main import vsfix
from vsfix.trainers.export.onnx_export import export_onnx

ROWS = 512


class Network(nn.Sequential):
    """Linear-Dropout-BatchNorm-ReLU twice, and four outputs; its statistics are true under the noise."""

    def __init__(self, noise: float = 0.5) -> None:
        drop = [nn.Dropout(noise)] if noise else []
        block = [nn.Linear(6, 16), *drop, nn.BatchNorm1d(16), nn.ReLU()]
        super().__init__(*block, nn.Linear(16, 16), *drop, nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 4))
        for layer in self:
            if isinstance(layer, nn.BatchNorm1d):
                layer.momentum = 1.0
                nn.init.uniform_(layer.bias, 0.5, 1.5)


def rows(count: int = ROWS) -> np.ndarray:
    return np.random.default_rng(1).normal(size=(count, 6)).astype(np.float32)


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Mapping[str, Path]:
    """The files of the situations by their names."""
    folder = tmp_path_factory.mktemp("advice")
    torch.manual_seed(0)
    noisy, quiet = Network(), Network(0.0)
    with torch.no_grad():
        for module in (noisy, quiet):
            module.train()(torch.from_numpy(np.tile(rows(), (20, 1))))
    made = {name: folder / f"{name}.onnx" for name in ("marked", "lost", "quiet", "stale", "taken", "bare")}
    example = torch.from_numpy(rows(4))
    export_onnx(noisy.eval(), example, made["marked"])
    export_onnx(quiet.eval(), example, made["quiet"])
    onnx.save(_without_markers(onnx.load(made["marked"])), made["lost"])
    stale = onnx.load(made["quiet"])
    for tensor in stale.graph.initializer:
        if tensor.name.endswith("running_var"):
            tensor.CopyFrom(onnx.numpy_helper.from_array(4 * onnx.numpy_helper.to_array(tensor), tensor.name))
    onnx.save(stale, made["stale"])
    made["taken"].write_bytes(made["marked"].read_bytes())
    _fold(made["lost"], made["bare"])
    made["data"] = folder / "data.npz"
    np.savez(made["data"], input=rows())
    made["labels"] = folder / "labels.npz"
    labels = noisy(torch.from_numpy(rows())).argmax(1).numpy()
    np.savez(made["labels"], input=rows(), labels=labels)
    made["few"] = folder / "few.npz"
    np.savez(made["few"], input=rows(6))
    return made


def _without_markers(model: onnx.ModelProto) -> onnx.ModelProto:
    graph = import_graph(model)
    RemoveMarkers()(graph)
    result = export_model(graph, model)
    del result.metadata_props[:]
    return result


def _fold(path: Path, folded: Path) -> None:
    """As a default export of PyTorch is: no BatchNorm, and no word of the noise."""
    line = f"optimize {path} --method none -o {folded}"
    assert CliRunner().invoke(vsfix, line.split()).exit_code == 0
    model = onnx.load(folded)
    del model.metadata_props[:]
    onnx.save(model, folded)


@pytest.fixture
def run(files, tmp_path):
    """Runs a command in words, `{name}` for a file and `{out}` for the output; the exit code and what was printed."""

    runs = itertools.count()

    def ran(line: str) -> tuple[int, str]:
        out = tmp_path / f"out{next(runs)}.onnx"
        result = CliRunner(env={"COLUMNS": "200"}).invoke(vsfix, line.format(**files, out=out).split())
        return result.exit_code, " ".join(result.output.split())

    return ran


@dataclass(frozen=True)
class Advice:
    """What a command says to do, and the command that does it.

    Attributes:
        line: the first command.
        said: a pattern of the advice.
        done: the command that follows it; `\\1` is what the pattern took.
        then: a pattern of what comes out then.
        code: the exit code then.
    """

    line: str
    said: str
    done: str
    then: str = ""
    code: int = 0


LOST, STALE = "optimize {lost} -o {out} --no-refine", "optimize {stale} -o {out} --data {data}"
EXACT_ALL = "vsfix optimize MODEL -o OUT --data DATA (--method exact --layers all)"
NOISE = "--noise '([^']*)=dropout:RATIO'"
SITUATIONS = [
    # Noise that the file does not show.
    Advice("inspect {lost}", "--data lets them be inferred", "inspect {lost} --data {data}", "inferred from"),
    Advice(LOST, "give --data so that the noise can be inferred", LOST + " --data {data}", "and its statistics tell"),
    Advice(LOST, "or say where it was with --noise", LOST + " --noise 2=dropout:0.5 --method match", "Repaired"),
    Advice(
        LOST, "export the network with `vsfix export`", "optimize {marked} --no-refine -o {out} --data {data}", "R = "
    ),
    Advice(
        LOST + " --method exact",
        "name them with (--layers all)",
        LOST + " --method exact --data {data} \\1",
        "Repaired 2 of 2",
    ),
    Advice(
        "inspect {bare} --data {data}",
        "where a network never had any, say where its noise was, with --noise 'NODE=dropout:RATIO'",
        "inspect {bare} --data {data} --noise node_linear=dropout:0.5",
        "R = ",
    ),
    Advice(
        "optimize {bare} --no-refine -o {out} --data {data}",
        "with --noise 'NODE=dropout:RATIO'",
        "optimize {bare} --no-refine -o {out} --data {data} --noise node_linear=dropout:0.5 --method match",
        "Repaired",
    ),
    Advice("inspect {bare}", "export it again with `vsfix export`", "inspect {marked}", "noise layers: 1"),
    # Statistics that are not those of the data.
    Advice("inspect {stale} --data {data}", EXACT_ALL, STALE + " \\1", "Repaired 2 of 2"),
    Advice(STALE, EXACT_ALL, STALE + " \\1", "Repaired 2 of 2"),
    Advice("inspect {stale} --data {data}", NOISE, "inspect {stale} --data {data} --noise \\1=dropout:0.5", "R = "),
    # A method that does not fit.
    Advice(
        "optimize {marked} --no-refine -o {out} --method distill",
        "it is no method any more",
        "optimize {marked} --no-refine -o {out}",
    ),
    Advice(
        "optimize {marked} --no-refine -o {out} --method stream --data {data}",
        "take (exact)",
        "optimize {marked} --no-refine -o {out} --method \\1 --data {data}",
        "Repaired",
    ),
    Advice(
        "optimize {marked} --no-refine -o {out} --method exact --data {data}",
        "moves the file away .* take (--method match)",
        "optimize {marked} --no-refine -o {out} \\1 --data {data}",
        "Repaired",
    ),
    Advice(
        "optimize {marked} --no-refine -o {out} --method exact --data {data}",
        "or check with (--eval-data)",
        "optimize {marked} --no-refine -o {out} --method exact --data {data} \\1 {labels}",
        "top-1",
        code=1,  # the labels are those of the network with its noise off
    ),
    Advice(
        "optimize {marked} --no-refine -o {out} --data {few} --method match",
        "the repair rests on 6 samples; give (\\d+) or more",
        "optimize {marked} --no-refine -o {out} --data {data} --samples \\1 --method match",
    ),
    Advice(
        "inspect {marked} --data {few}",
        "R rests on 6 samples; give (\\d+) or more",
        "inspect {marked} --data {data} --samples \\1",
        "R = ",
    ),
    # Names and values.
    Advice(
        "optimize {marked} --no-refine -o {out} --data {data} --method match --layers nothing",
        "those are (\\w+)",
        "optimize {marked} --no-refine -o {out} --data {data} --method match --layers \\1",
        "Repaired 1 of 2",
    ),
    Advice(
        "inspect {lost} --noise bn=dropout:0.5", "`vsfix inspect` lists them", "inspect {lost} --noise 6=dropout:0.5"
    ),
    Advice("inspect {lost} --noise 2=dropout", "as in (dropout:0.5)", "inspect {lost} --noise 2=\\1", " dropout:0.5 "),
    Advice("inspect {lost} --noise dropout:0.5", "write NODE=KIND:VALUE", "inspect {lost} --noise 2=dropout:0.5"),
    Advice("inspect {lost} --noise 2=dropout:0", "is no noise; leave it out", "inspect {lost}", "noise layers: none"),
    Advice("inspect {marked} --data digits", "give an .npz file", "inspect {marked} --data {data}", "R = "),
    Advice("inspect {marked} --mean 0.5", "--mean 0 --std 1", "inspect {marked} --mean 0 --std 1"),
    Advice(
        "optimize {marked} --no-refine -o {out} --data {data} --output-kind logits=nothing",
        "is none of classes, probabilities, directions, (values)",
        "optimize {marked} --no-refine -o {out} --data {data} --output-kind logits=\\1",
    ),
    Advice(
        "optimize {marked} --no-refine -o {out} --max-loss 1",
        "needs (--eval-data)",
        "optimize {marked} --no-refine -o {out} --max-loss 1 \\1 {labels}",
        "top-1",
    ),
    # Files.
    Advice("optimize {marked}", "or pass (--dry-run)", "optimize {marked} --no-refine \\1"),
    Advice("optimize {marked}", "name the output with -o", "optimize {marked} --no-refine -o {out}", "wrote "),
    Advice("optimize {marked} -o {marked}", "name another output", "optimize {marked} --no-refine -o {out}", "wrote "),
    Advice(
        "optimize {marked} --no-refine -o {taken}",
        "(--force)",
        "optimize {marked} --no-refine -o {taken} \\1",
        "wrote ",
    ),
]


@pytest.mark.long
@pytest.mark.parametrize("advice", SITUATIONS, ids=lambda advice: f"{advice.line}: {advice.said}"[:90])
def test_what_is_advised_changes_what_comes_out(run, advice):
    code, before = run(advice.line)
    said = re.search(advice.said, before)
    assert said, before
    after_code, after = run(said.expand(advice.done))
    assert after_code == advice.code, after
    assert not re.search(advice.said, after)
    assert re.search(advice.then, after), after
    assert (code, before) != (after_code, after)


def test_a_file_repaired_as_advised_is_not_sent_back_for_repair(run, tmp_path):
    run(STALE + " --method exact --layers all --no-fold")
    code, after = run(f"inspect {tmp_path / 'out0.onnx'} --data {{data}}")
    assert code == 0
    assert "PASS Nothing to repair" in after
    assert not re.search(EXACT_ALL, after)
