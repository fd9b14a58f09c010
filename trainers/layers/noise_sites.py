"""The sites at which a network has its noise, in the words of the paper, and the noise at each of them.

    a      directly upstream of the last BatchNorm of each block
    b      upstream of the last convolution of each block
    last   downstream of the last BatchNorm, upstream of the classifier

Each network says where that is among its layers. Source: Li, Chen, Hu, Yang, CVPR 2019, arXiv 1801.05134.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal, get_args

from torch import nn

from vsfix.graph_passes.errors import InputError
from vsfix.graph_passes.noise.noise import Noise

from .noise_layers import make_noise_layer

Site = Literal["a", "b", "last"]
SITES: tuple[Site, ...] = get_args(Site)


@dataclass(frozen=True)
class NoiseSites:
    """The noise at each site; None for nothing.

    Attributes:
        a: see the head of this module.
        b: likewise.
        last: likewise.

    Raises:
        InputError: something else than a Noise.
    """

    a: Noise | None = None
    b: Noise | None = None
    last: Noise | None = None

    def __post_init__(self) -> None:
        for site, noise in self.items():
            if not isinstance(noise, Noise):
                raise InputError(f"network: the noise of site {site} must be a Noise or None, not {noise!r}")

    @classmethod
    def parse(cls, texts: Sequence[str], site: Site = "a") -> NoiseSites:
        """Reads `[SITE=]KIND:VALUE`, as in `dropout:0.5` or `last=uout:0.1`, one for each site; or `none` alone.

        Args:
            texts: one for each site.
            site: of the text that names none.

        Raises:
            InputError: another form, an unknown site, or a site that is named twice.
        """
        if list(texts) == ["none"]:
            return cls()
        found: dict[str, Noise] = {}
        for text in texts:
            name, noise = text.split("=", 1) if "=" in text else (site, text)
            if name not in SITES:
                raise InputError(f"noise '{text}': site '{name}' must be one of {', '.join(SITES)}")
            if name in found:
                raise InputError(f"noise '{text}': site {name} has {found[name]} already")
            if noise == "none":
                raise InputError(f"noise '{text}': 'none' stands alone")
            found[name] = Noise.parse(noise)
        return cls(**found)

    def items(self) -> list[tuple[Site, Noise]]:
        """The sites that have noise, in the order of the network."""
        return [(site, getattr(self, site)) for site in SITES if getattr(self, site) is not None]

    def layers(self, site: Site) -> dict[str, nn.Module]:
        """The noise layer of a site of a block under the name it has there; nothing where the site has none.

        Two sites of one block are told apart by their names; a network with one of them has `noise`.
        """
        noise = getattr(self, site)
        if noise is None:
            return {}
        return {"noise_b" if site == "b" and self.a is not None else "noise": make_noise_layer(noise)}

    def __str__(self) -> str:
        return ", ".join(f"{site}={noise}" for site, noise in self.items()) or "none"

    def to_dict(self) -> dict[str, Any]:
        """Plain strings and None by site; `from_dict` gives back an equal object."""
        exact = {site: f"{noise.kind.value}:{noise.value!r}" for site, noise in self.items()}
        return {site: exact.get(site) for site in SITES}

    @classmethod
    def from_dict(cls, values: Any) -> NoiseSites:
        """Reads what `to_dict` wrote.

        Raises:
            InputError: a site is missing, unknown, or holds something else.
        """
        if not isinstance(values, Mapping) or set(values) != {entry.name for entry in fields(cls)}:
            raise InputError(f"network: noise must have the sites {', '.join(SITES)}, and is {values!r}")
        return cls(**{site: Noise.parse(text) if isinstance(text, str) else text for site, text in values.items()})


NO_NOISE = NoiseSites()
