"""MEGnet, which labels the components of a magnetoencephalogram: a published file whose BatchNorms no noise reaches."""

from __future__ import annotations

import numpy as np
import onnx
from real_entry import Array, Case, Metric, Network, Outputs, Place, only

CLASSES = ("brain or other", "eye blink", "heart beat", "eye movement")  # mne_icalabel/megnet/_config.py
RATE, LENGTH, SIDE = 250, 15_000, 120


def megnet(place: Place) -> Case:
    """The file as it is shipped, on components that are drawn as mne_icalabel/megnet/features.py draws them."""
    wheel = place.wheel("mne-icalabel", "0.10.0")
    model = onnx.load(wheel / "mne_icalabel" / "megnet" / "assets" / "megnet.onnx")
    rows, _ = components(32, 1)
    test, truth = components(place.count(100), 2)

    def score(answers: Outputs) -> tuple[Array, ...]:
        return (100.0 * (only(answers).argmax(1) == truth),)

    return Case(model, rows, test, score, (Metric("component right, %"),))


def components(count: int, seed: int) -> tuple[dict[str, Array], Array]:
    """Maps (N, 120, 120, 3) in blue, white and red on black, courses of a minute (N, 15000, 1), and what each is."""
    rng = np.random.default_rng(seed)
    kinds = rng.integers(len(CLASSES), size=count)
    made = [_component(int(kind), rng) for kind in kinds]
    maps = np.stack([_drawn(field) for field, _ in made]).astype(np.float32)
    courses = np.stack([course / course.std() for _, course in made])[..., None].astype(np.float32)
    return {"spatial_input": maps, "temporal_input": courses}, kinds


def _component(kind: int, rng: np.random.Generator) -> tuple[Array, Array]:
    """A field on the map's square, nose up, and its course."""
    y, x = np.mgrid[1 : -1 : SIDE * 1j, -1 : 1 : SIDE * 1j]
    time = np.arange(LENGTH) / RATE
    pink = np.cumsum(rng.normal(size=LENGTH))
    pink -= np.convolve(pink, np.ones(250) / 250, "same")

    def blob(across: float, up: float, size: float) -> Array:
        return np.asarray(np.exp(-((x - across) ** 2 + (y - up) ** 2) / size**2))

    if kind == 1:  # both eyes, poles of opposite sign beside each other in the front
        field = blob(-0.45, 0.7, 0.3) - blob(0.45, 0.7, 0.3)
        starts = np.cumsum(rng.uniform(2, 6, 30))
        course = sum(8 * np.exp(-(((time - start) / 0.12) ** 2)) for start in starts[starts < 58]) + 0.02 * pink
    elif kind == 2:  # a wide field; narrow beats in a row
        field = x + 0.3 * rng.normal()
        starts = np.cumsum(rng.uniform(0.8, 0.95, 75))
        course = sum(6 * np.exp(-(((time - start) / 0.015) ** 2)) for start in starts[starts < 59]) + 0.02 * pink
    elif kind == 3:  # steps to the side and back
        field = blob(-0.6, 0.75, 0.25) + blob(0.6, 0.75, 0.25) - 1.2 * blob(0, 0.85, 0.3)
        course = np.repeat(rng.choice([-1, 0, 1], 60), RATE).astype(np.float64) + 0.01 * pink
    else:
        across, up = rng.uniform(-0.5, 0.5, 2)
        field = blob(across + 0.2, up, 0.3) - blob(across - 0.2, up, 0.3)
        course = np.sin(2 * np.pi * rng.uniform(8, 12) * time) * (1 + np.sin(time)) + 0.05 * pink
    return field, np.asarray(course)


def _drawn(field: Array) -> Array:
    """matplotlib's bwr, from blue over white to red, on a black square."""
    level = field / np.abs(field).max()
    red, blue = np.minimum(1, 1 + level), np.minimum(1, 1 - level)
    y, x = np.mgrid[1 : -1 : SIDE * 1j, -1 : 1 : SIDE * 1j]
    inside = (x**2 + y**2 < 0.9)[..., None]
    return np.asarray(255 * inside * np.stack([red, np.minimum(red, blue), blue], 2))


NETWORKS = (
    Network(
        "MEGnet",
        "components of a magnetoencephalogram",
        "published",
        "none reaches a BatchNorm",
        (0, 8),
        "mne_icalabel/megnet/assets/megnet.onnx",
        megnet,
    ),
)
