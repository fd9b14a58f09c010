"""What there is: the architectures of timm and torchvision, each by its name, and how each is made."""

from __future__ import annotations

import json
import math
import re
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import timm
import torch
import torchvision
from torch import nn

DROP_RATES = {"drop_rate": 0.2, "drop_path_rate": 0.1, "proj_drop_rate": 0.2}
BATCH_NORM = nn.modules.batchnorm._BatchNorm
Row = dict[str, Any]


class FirstOutput(nn.Module):
    """A network that returns one tensor, where `net` returns several by name."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The output called `out`."""
        out: torch.Tensor = self.net(x)["out"]
        return out


def catalogue() -> Iterator[tuple[str, str]]:
    """The name and the family of each architecture."""
    for module in timm.list_modules():
        for name in timm.list_models(module=module):
            yield f"timm/{name}", f"timm/{module}"
    for name in torchvision.models.list_models():
        family = torchvision.models.get_model_builder(name).__module__.removeprefix("torchvision.models.")
        yield f"torchvision/{name}", f"torchvision/{family}"


def build(name: str) -> nn.Module:
    """The network, with its drop rates."""
    library, _, short = name.partition("/")
    if library == "torchvision":
        # Backbones have pretrained weights by default; the others take no such argument and leave it unused.
        backbone = any(part in short for part in ("rcnn", "retinanet", "ssd", "fcos", "deeplab", "fcn", "lraspp"))
        arguments = {"weights_backbone": None} if backbone else {}
        net = torchvision.models.get_model(short, weights=None, **arguments)
        return FirstOutput(net) if short.startswith(("deeplab", "fcn_", "lraspp")) else net
    rates = dict(DROP_RATES)
    while True:
        try:
            return timm.create_model(short, pretrained=False, **rates)
        except TypeError as error:
            refused = [key for key in rates if f"'{key}'" in str(error)]
            if "unexpected keyword" not in str(error) or not refused:
                raise
            rates = {key: value for key, value in rates.items() if key not in refused}


def describe(name: str, family: str) -> Row:
    """What can be told without memory for the weights."""
    row: Row = {"name": name, "family": family, "parameters": None, "batch_norms": None}
    try:
        with torch.device("meta"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            net = build(name)
    except Exception as error:  # some can't be made without memory; they are made with it later
        return row | {"note": first_line(error)}
    row["parameters"] = sum(parameter.numel() for parameter in net.parameters())
    row["batch_norms"] = sum(isinstance(part, BATCH_NORM) for part in net.modules())
    row["fixed_size"] = bool((getattr(net, "pretrained_cfg", None) or {}).get("fixed_input_size"))
    return row


def described(path: Path) -> list[Row]:
    """One row for each architecture, made once and kept beside the results."""
    if path.exists():
        return [json.loads(line) for line in path.read_text().splitlines()]
    rows = [describe(name, family) for name, family in catalogue()]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return rows


def in_order(rows: Sequence[Row]) -> list[Row]:
    """The smallest of each family, then all others, roughly those first that take the least time."""
    small = sorted(rows, key=lambda row: (row["parameters"] or math.inf, row["name"]))
    first: dict[str, str] = {}
    for row in small:
        if row["batch_norms"] != 0:
            first.setdefault(row["family"], row["name"])
    return sorted(
        small,
        key=lambda row: (
            first.get(row["family"]) != row["name"],
            row.get("fixed_size", False),  # of 224 pixels or more
            row["batch_norms"] or 0,
        ),
    )


def first_line(error: object) -> str:
    """An error in one line."""
    text = str(error).strip() or type(error).__name__
    return re.sub(r"\s+", " ", text)[:400]
