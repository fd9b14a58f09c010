"""A network of vsfix that was never trained, as an ONNX file: what benchmarks of time take for a model.

Its weights are random, the statistics of its BatchNorms those of a random batch, so that its activations are of a usual
size however deep it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

IMAGE = (3, 32, 32)
DROPOUT = ("a=dropout:0.5",)  # in front of the last BatchNorm of each block


def export_random_network(name: str, path: Path, noise: Sequence[str] = DROPOUT) -> None:
    """Writes the network of a name of `vsfix train --model`, every BatchNorm kept and its noise marked."""
    import torch
    from torch.nn.modules.batchnorm import _BatchNorm

    from vsfix.trainers.export.onnx_export import export_onnx
    from vsfix.trainers.layers.noise_sites import NoiseSites
    from vsfix.trainers.networks.network import NetworkConfig, build_network

    torch.manual_seed(0)
    module = build_network(NetworkConfig(name, IMAGE[0], IMAGE[1:], 10, NoiseSites.parse(noise)))
    for layer in module.modules():
        if isinstance(layer, _BatchNorm):
            layer.momentum = 1.0
            torch.nn.init.uniform_(layer.weight, 0.5, 1.5)
            torch.nn.init.normal_(layer.bias, 0, 0.2)
    with torch.no_grad():
        module.train()(torch.randn(32, *IMAGE))
    path.parent.mkdir(parents=True, exist_ok=True)
    export_onnx(module.eval(), torch.randn(4, *IMAGE), path)
