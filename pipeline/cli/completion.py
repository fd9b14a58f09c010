"""The words that a shell completes and a help text lists, beside the names of commands and options.

Nothing heavy is loaded for them: names that belong to other rooms are written out here, and a test holds them to those.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from glob import escape, iglob

import click
from click.shell_completion import CompletionItem

Complete = Callable[[click.Context, click.Parameter, str], list[CompletionItem]]

BACKENDS = (
    *("torch", "torch-compile", "onnxruntime", "onnxruntime-cuda", "onnxruntime-tensorrt", "onnxruntime-tensorrt-rtx"),
    *("tensorrt", "tensorrt-rtx", "reference"),
)
DATA = ("digits", "fashion-mnist", "cifar10:", "cifar100:", "imagefolder:", "hf:")
METHODS = ("auto", "match", "paired", "exact", "analytic", "none")
METRICS = ("top1", "top5", "mse", "mae", "r2", "cosine", "iou", "bce")
NETWORKS = (
    *("preresnet-20", "preresnet-110", "wrn-16-4", "wrn-28-10", "densenet-40-12", "resnext-29-8x64d", "mlp-2", "mlp-5"),
    *("resnet-50", "resnext-50-32x4d", "seresnet-50", "seresnext-50-32x4d", "senet-154"),
)
NOISES = (
    *("dropout:0.5", "feature-dropout:0.5", "drop-path:0.1", "gaussian-dropout:0.5", "alpha-dropout:0.5"),
    *("uout:0.1", "uout-bernoulli:0.1", "uout-gaussian:0.1"),
)
PRECISIONS = ("fp32", "tf32", "fp16", "bf16", "int8", "fp8")
RECIPES = ("quick", "preresnet", "wrn", "densenet", "resnext", "resnet", "senet")
TABLES = ("figure1", "sites", "width", "uout", "last", "remedies", "regularization", "all")


def words(known: Sequence[str], *, or_files: bool = False) -> Complete:
    """Completes one of some words, or else the name of a file.

    Args:
        known: the words.
        or_files: a file may stand there too; where both begin alike, the files are listed with the words.
    """

    def complete(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        found = [CompletionItem(word) for word in known if word.startswith(incomplete)]
        if not or_files:
            return found
        if not found:
            return files(ctx, param, incomplete)
        alike = sorted(iglob(f"{escape(incomplete)}*")) if incomplete else []
        return [*found, *map(CompletionItem, alike)]

    return complete


def files(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Completes the name of a file, which the shell does itself."""
    return [CompletionItem(incomplete, type="file")]
