from __future__ import annotations

import numpy as np
import pytest

from vsfix.graph_passes.noise_inference.plan import Plan
from vsfix.graph_passes.noise_inference.telling import Telling
from vsfix.graph_passes.noise_inference.verdict import Verdict, conclude

GROUPS, SAMPLES = 8, 200


def telling(name: str, off: float) -> Telling:
    """A BatchNorm whose variances are off by so much, of which no noise was tried."""
    products = np.full((1 + GROUPS, 1, 1), off**2)
    return Telling(name, (), products, 0.02**2, np.zeros(1 + GROUPS), 0.0, 64, 1.0, products[:, 0, 0])


@pytest.mark.parametrize(("off", "verdict"), [(0.04, Verdict.NO_NOISE), (0.1, Verdict.NOT_EXPLAINED)])
def test_statistics_that_are_off_by_more_than_chance_together_are_no_healthy_ones(off, verdict):
    found = conclude([telling("a", off), telling("b", off)], Plan(), [], SAMPLES)
    assert not any(one.is_off for one in found.residuals.values())
    assert found.verdict is verdict
    assert f"off by {off:.3f}" in found.confidence
