"""Noise layers for modules of torch that vsfix exports and repairs with everything that it knows: `vsfix.nn`."""

from __future__ import annotations

from vsfix.trainers.layers.noise_layers import DropPath, GaussianDropout, Uout

__all__ = ["DropPath", "GaussianDropout", "Uout"]
