from __future__ import annotations

import copy
import io
import json

import pytest
import torch
from torch import nn

from vsfix.graph_passes.errors import InputError
from vsfix.graph_passes.noise.marker import REPAIR_KEY
from vsfix.trainers.averaging.unit_parameters import require_unrepaired, write_tensors
from vsfix.trainers.export.onnx_export import convert_module
from vsfix.trainers.layers.repair_mark import repaired_parts


@pytest.fixture
def module():
    torch.manual_seed(0)
    layers = [nn.Linear(3, 4, bias=False), nn.Dropout(0.5), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2)]
    return nn.Sequential(*layers).double().eval()


@pytest.fixture
def repaired(module):
    repaired = copy.deepcopy(module)
    write_tensors(repaired, {"2.weight": torch.rand(4, dtype=torch.double), "4.bias": torch.rand(2).double()})
    return repaired


def pickled(module):
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize(
    ("moved", "names"),
    [
        (nn.Sequential, ("0.2", "0.4")),
        (lambda module: module[1:4], ("2",)),
        (lambda module: module[2], ("",)),
        (copy.deepcopy, ("2", "4")),
        (pickled, ("2", "4")),
        (nn.Module.float, ("2", "4")),
        (lambda module: module.float().bfloat16().float(), ("2", "4")),
    ],
)
def test_a_repaired_layer_is_known_wherever_it_stands(repaired, moved, names):
    there = moved(repaired)
    assert repaired_parts(there) == names
    with pytest.raises(InputError, match="was repaired already"):
        require_unrepaired(there)


def test_a_layer_with_other_values_is_not_repaired(module, repaired):
    with torch.no_grad():
        repaired[2].weight[0] += 1
    assert repaired_parts(repaired) == ("4",)
    repaired.load_state_dict(module.state_dict())
    assert repaired_parts(repaired) == ()
    require_unrepaired(repaired)


def test_a_file_names_the_layers_that_a_repair_wrote(module, repaired):
    x = torch.rand(4, 3)
    files = [convert_module(each.float(), x)[0] for each in (module, repaired, nn.Sequential(repaired))]
    entries = [{entry.key: entry.value for entry in file.metadata_props} for file in files]
    assert REPAIR_KEY not in entries[0]
    assert json.loads(entries[1][REPAIR_KEY])["repaired"] == ["2", "4"]
    assert json.loads(entries[2][REPAIR_KEY])["repaired"] == ["0.2", "0.4"]
