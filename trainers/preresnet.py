"""Pre-activation residual networks of 16, 32 and 64 channels, by their depth.

Blocks, stages and the sites of the noise are those of `preactivation`. The depth is 6n+2 with n basic blocks in each of
the three stages, and 9n+2 with n bottlenecks.

Source: He, Zhang, Ren, Sun, "Identity Mappings in Deep Residual Networks", ECCV 2016, arXiv 1603.05027.
"""

from __future__ import annotations

from vsfix.graph_passes.errors import InputError

from .noise_sites import NO_NOISE, NoiseSites
from .preactivation import BLOCK_FORMS, BlockKind, PreActivationNetwork, PreActivationShape

MIN_IMAGE_SIZE = 8
_STAGE_CHANNELS = (16, 32, 64)
_BOTTLENECK_FROM = 164


def choose_block(depth: int, block: BlockKind | None = None) -> BlockKind:
    """The kind of block of a network of this depth.

    Where nothing is asked for: basic for a depth of 6n+2 below 164, bottleneck for 9n+2 from 164 on, and the one that
    fits where the other does not.

    Args:
        depth: layers with weights on the longest path.
        block: the kind that is asked for.

    Raises:
        InputError: the depth does not fit.
    """
    fitting = [kind for kind in BLOCK_FORMS if block in (None, kind) and _blocks_per_stage(depth, kind)]
    if not fitting:
        forms = {"basic": "6n+2", "bottleneck": "9n+2", None: "6n+2 (basic) or 9n+2 (bottleneck)"}[block]
        raise InputError(f"the depth must be {forms} with n of at least 1, not {depth}")
    return fitting[0] if depth < _BOTTLENECK_FROM else fitting[-1]


class PreResNet(PreActivationNetwork):
    """The network.

    Shapes: (N, in_channels, H, W) with H and W of at least 8 -> (N, num_classes).

    Args:
        depth: layers with weights on the longest path: 6n+2 or 9n+2, n of at least 1.
        in_channels: channels of the images.
        num_classes: outputs.
        width: what 16, 32 and 64 channels are multiplied by.
        noise: what stands at which site, see the head of `preactivation`.
        block: "basic" or "bottleneck" instead of what the depth suggests.

    Raises:
        InputError: the depth does not fit the block.
    """

    def __init__(
        self,
        depth: int,
        in_channels: int,
        num_classes: int,
        *,
        width: int = 1,
        noise: NoiseSites = NO_NOISE,
        block: BlockKind | None = None,
    ) -> None:
        kind = choose_block(depth, block)
        first, second, third = (base * width for base in _STAGE_CHANNELS)
        shape = PreActivationShape(kind, _blocks_per_stage(depth, kind), first, (first, second, third))
        super().__init__(shape, in_channels, num_classes, noise)


def _blocks_per_stage(depth: int, kind: BlockKind) -> int:
    """The n of the depth; 0 where the depth does not fit."""
    count, rest = divmod(depth - 2, len(_STAGE_CHANNELS) * len(BLOCK_FORMS[kind].kernels))
    return 0 if rest else max(count, 0)
