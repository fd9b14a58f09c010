"""What `inspect` and `optimize` say of one file."""

from __future__ import annotations

import numpy as np
import pytest

import vsfix

X = np.random.default_rng(0).normal(0.5, 1, (300, 8)).astype(np.float32)


@pytest.mark.parametrize("factor", [1.0, 1.4])
def test_a_file_whose_noise_does_no_harm_passes_where_its_statistics_are_true_alone(parse, factor):
    """Dropout stands upstream of the last BatchNorm, after which all is linear: its mean is the network without it."""
    rng = np.random.default_rng(1)
    weight, last = (rng.normal(size=shape) for shape in ((8, 64), (64, 32)))
    h = X @ weight
    v = factor * h.var(axis=0)
    r = np.maximum((h - h.mean(axis=0)) / np.sqrt(v + 1e-5), 0)
    z = r @ last
    noise = (r**2).mean(axis=0) @ last**2  # of Dropout 0.5: s2 sum_i w_ij^2 E[r_i^2], s2 = 1
    weights = {"w": weight, "last": last, "ratio": np.array(0.5), "g": np.ones(64), "b": np.zeros(64)}
    weights |= {"m": h.mean(axis=0), "v": v, "c": np.ones(32), "e": np.zeros(32)}
    weights |= {"k": z.mean(axis=0), "u": z.var(axis=0) + noise}
    model = parse(
        """(float[N, 8] x) => (float[N, 32] y) {
            h = MatMul (x, w)
            n = BatchNormalization (h, g, b, m, v)
            r = Relu (n)
            d = Dropout (r, ratio)
            z = MatMul (d, last)
            y = BatchNormalization (z, c, e, k, u)
        }""",
        {name: array.astype(np.float32) for name, array in weights.items()},
    )
    seen = vsfix.inspect(model, X, output_kinds={"y": "values"})
    made = vsfix.optimize(model, X, output_kinds={"y": "values"})
    assert seen.status == made.status == ("PASS" if factor == 1 else "WARN")
    assert any("stale" in warning for warning in made.report.warnings) == (factor != 1)
