"""A small residual network in ONNX whose statistics torch made, in float64, with noise that the file does not mark.

    x -> Conv -> 3 blocks  x + Conv(relu(bn2(Conv(relu(bn1(x))))))  -> bn -> relu -> mean -> Gemm

Site a is in front of bn2, site b in front of the second convolution of each block.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import onnx.checker
import onnx.parser
import torch
import torch.nn.functional as F

BLOCKS = 3
CHANNELS = 8
Weights = dict[str, np.ndarray]
Noisy = Callable[[torch.Tensor], torch.Tensor]


def site_tensors(site: str) -> list[str]:
    """The tensors that carry the noise of a site."""
    return [f"{'c' if site == 'a' else 'q'}{i}" for i in range(BLOCKS)]


def make_images(samples: int, seed: int) -> np.ndarray:
    """Blobs of different place, size and brightness, shape (samples, 2, 8, 8)."""
    rng = np.random.default_rng(seed)
    grid = np.arange(8.0)
    centre, width = rng.uniform(1, 7, (4, samples, 2, 1)), rng.uniform(1, 3, (2, samples, 2, 1))
    rows = np.exp(-(((grid - centre[0]) / width[0]) ** 2))  # (samples, 2, 8)
    columns = np.exp(-(((grid - centre[1]) / width[1]) ** 2))
    brightness = rng.uniform(0.5, 2, (samples, 2, 1, 1))
    return (brightness * rows[..., :, None] * columns[..., None, :] - 0.3).astype(np.float32)


def make_weights(seed: int) -> Weights:
    """Weights and scales; the statistics are left to `plant`."""
    rng = np.random.default_rng(seed)
    shapes = {"stem": (CHANNELS, 2, 3, 3)}
    shapes |= {f"{kind}{i}": (CHANNELS, CHANNELS, 3, 3) for i in range(BLOCKS) for kind in ("first", "second")}
    weights = {name: rng.normal(0, np.sqrt(2 / np.prod(shape[1:])), shape) for name, shape in shapes.items()}
    weights |= {"fc.weight": rng.normal(0, 0.5, (5, CHANNELS)), "fc.bias": np.zeros(5)}
    for name in [f"bn{i}{k}" for i in range(BLOCKS) for k in "12"] + ["bn"]:
        weights |= {f"{name}.weight": rng.uniform(0.7, 1.3, CHANNELS), f"{name}.bias": rng.normal(0, 0.2, CHANNELS)}
    return {name: values.astype(np.float32) for name, values in weights.items()}


def plant(weights: Weights, images: np.ndarray, site: str, noise: Noisy) -> Weights:
    """The weights with the statistics of one forward of all images, the noise on, in float64."""
    w = {name: torch.tensor(values, dtype=torch.float64) for name, values in weights.items()}
    statistics: Weights = {}

    def bn(t: torch.Tensor, name: str) -> torch.Tensor:
        mean, var = t.mean(dim=(0, 2, 3)), t.var(dim=(0, 2, 3), unbiased=False)
        statistics[f"{name}.running_mean"] = mean.numpy().astype(np.float32)
        statistics[f"{name}.running_var"] = var.numpy().astype(np.float32)
        return F.batch_norm(t, mean, var, w[f"{name}.weight"], w[f"{name}.bias"], eps=1e-5)

    x = F.conv2d(torch.tensor(images, dtype=torch.float64), w["stem"], padding=1)
    for i in range(BLOCKS):
        c = F.conv2d(F.relu(bn(x, f"bn{i}1")), w[f"first{i}"], padding=1)
        q = F.relu(bn(noise(c) if site == "a" else c, f"bn{i}2"))
        x = F.conv2d(noise(q) if site == "b" else q, w[f"second{i}"], padding=1) + x
    bn(x, "bn")
    return weights | statistics


def make_model(weights: Weights) -> onnx.ModelProto:
    """The network without a marker."""
    conv = "Conv <pads: ints = [1, 1, 1, 1]>"

    def bn(data: str, name: str) -> str:
        return (
            f'BatchNormalization ({data}, "{name}.weight", "{name}.bias", "{name}.running_mean", "{name}.running_var")'
        )

    lines = [f'x0 = {conv} (x, "stem")']
    for i in range(BLOCKS):
        lines += [f"n{i} = {bn(f'x{i}', f'bn{i}1')}", f"p{i} = Relu (n{i})", f'c{i} = {conv} (p{i}, "first{i}")']
        lines += [f"m{i} = {bn(f'c{i}', f'bn{i}2')}", f"q{i} = Relu (m{i})", f'd{i} = {conv} (q{i}, "second{i}")']
        lines += [f"x{i + 1} = Add (d{i}, x{i})"]
    lines += [f"n = {bn(f'x{BLOCKS}', 'bn')}", "r = Relu (n)", "g = GlobalAveragePool (r)", "f = Flatten (g)"]
    lines += ['y = Gemm <transB: int = 1> (f, "fc.weight", "fc.bias")']
    body = "\n".join(lines)
    model = onnx.parser.parse_model(
        f'<ir_version: 8, opset_import: ["" : 18]>\nmain (float[N, 2, 8, 8] x) => (float[N, 5] y) {{\n{body}\n}}'
    )
    model.graph.initializer.extend(onnx.numpy_helper.from_array(value, name) for name, value in weights.items())
    onnx.checker.check_model(model, full_check=True)
    return model
