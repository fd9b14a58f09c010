"""What becomes of a refit that goes wrong inside of TensorRT."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from vsfix.graph_passes.errors import BuildError, InputError, MissingComponentError
from vsfix.pipeline.backends.engine_refit import refit_engine, require_refit

VALUES = {"w": np.ones((2, 2), np.float32), "b": np.ones(2, np.float32)}


def refitter(missing=lambda done: [], refits=True):
    """A library whose refitter takes everything; `missing` tells from what was set what is wanted still."""
    done: list[str] = []

    def make(engine, log):
        return SimpleNamespace(
            set_named_weights=lambda name, weights: done.append(name) or True,
            get_missing_weights=lambda: missing(done),
            refit_cuda_engine=lambda: refits,
        )

    return SimpleNamespace(Refitter=make, Weights=lambda values: values), done


def refit(library, **engine):
    found = SimpleNamespace(**{"refittable": True, "serialize": lambda: b"plan"} | engine)
    return refit_engine(library, SimpleNamespace(errors=["Error Code 1\n: why"]), found, {"w": VALUES["w"]}, VALUES)


def test_weights_that_are_fused_with_those_that_were_set_are_given_once():
    library, done = refitter(lambda done: ["b", "b"] if "b" not in done else [])
    assert refit(library) == (b"plan", ("b",))
    assert done == ["w", "b"]


def test_weights_that_the_model_does_not_have_are_named():
    with pytest.raises(BuildError, match="the engine wants the weights 'z' too, which the model does not have"):
        refit(refitter(lambda done: ["z"])[0])


def test_an_engine_that_is_never_content_is_refused():
    with pytest.raises(BuildError, match="the engine still wants weights after all were given: b"):
        refit(refitter(lambda done: ["b"])[0])


def test_a_refit_that_fails_says_why_in_one_line():
    with pytest.raises(BuildError, match=r"^the refit fails: Error Code 1 : why$"):
        refit(refitter(refits=False)[0])


def test_an_engine_that_is_not_refittable_is_refused():
    with pytest.raises(BuildError, match="is not refittable; build it with --refit"):
        refit(refitter()[0], refittable=False)


@pytest.mark.parametrize(
    ("version", "refused"),
    [("11.0.1", True), ("11.3.0", True), ("11.4.0", False), ("10.3.0", False), ("11.30.0", False)],
)
def test_the_versions_that_may_drop_a_bias_are_refused(version, refused):
    if not refused:
        require_refit("tensorrt", version)
        return
    with pytest.raises(InputError, match=f"TensorRT {version} may compute with a bias of 0"):
        require_refit("tensorrt", version)


def test_tensorrt_rtx_needs_a_gpu_for_it(monkeypatch):
    monkeypatch.setattr("vsfix.pipeline.backends.engine_refit.visible_capability", lambda: None)
    with pytest.raises(MissingComponentError, match="with an NVIDIA GPU and driver only"):
        require_refit("tensorrt-rtx", "1.7.1")
    monkeypatch.setattr("vsfix.pipeline.backends.engine_refit.visible_capability", lambda: "sm89")
    require_refit("tensorrt-rtx", "1.7.1")
