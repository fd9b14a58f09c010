"""The options that several commands share, so that they read the same everywhere."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from . import completion
from .log import take_verbose

_LARGEST_SEED = 2**63 - 1  # what torch takes
F = TypeVar("F", bound=Callable[..., Any])

DATA_HELP = (
    "digits, fashion-mnist[:DIR], cifar10:DIR, cifar100:DIR, imagefolder:DIR, hf:NAME; FILE.npz with one array per "
    "model input; FILE.npy, the only input; FILE.csv or .tsv, its columns (FILE.csv:label=COLUMN); or "
    "package.module:function, which runs that code and gives batches."
)


complete_data = completion.words(completion.DATA, or_files=True)


def data_option(*, required: bool) -> Callable[[F], F]:
    """`--data D`."""
    return click.option("--data", required=required, metavar="D", help=DATA_HELP, shell_complete=complete_data)


def normalization_options(function: F) -> F:
    """`--mean`, `--std` and `--size`."""
    for name, parse, form, text in (
        ("--size", parse_sides, "HxW", "Bring image files to this size.  [default: that of the model's input]"),
        ("--std", parse_numbers, "X[,Y,Z]", "The deviation, likewise: (x / 255 - mean) / std."),
        (
            "--mean",
            parse_numbers,
            "X[,Y,Z]",
            "Normalise images of bytes, where MODEL does not say how: the mean of pixels between 0 and 1, one number "
            "or one for each channel.",
        ),
    ):
        function = click.option(name, callback=parse, metavar=form, help=text)(function)
    return function


def samples_option(default: str = "all") -> Callable[[F], F]:
    """`--samples N`; `default` says what is taken where it is not given."""
    return click.option(
        "--samples",
        type=click.IntRange(min=1),
        metavar="N",
        help=f"Take N samples, drawn at random under --seed.  [default: {default}]",
    )


split_option = click.option("--split", type=click.Choice(["train", "test"]), default="test", show_default=True)

batch_size_option = click.option(
    "--batch-size", type=click.IntRange(min=1), default=256, show_default=True, metavar="N", help="Samples per run."
)

seed_option = click.option(
    "--seed",
    type=click.IntRange(0, _LARGEST_SEED),
    default=0,
    show_default=True,
    help="Of everything that is drawn at random.",
)


noise_option = click.option(
    "--noise",
    multiple=True,
    metavar="NODE=KIND:VALUE",
    help="Noise that the file does not show, as bn2=dropout:0.5: directly upstream of a BatchNorm, or after a node "
    "or on a tensor; NODE may be a glob. May be given again.",
)

output_kind_option = click.option(
    "--output-kind",
    "output_kinds",
    multiple=True,
    metavar="NAME=classes|probabilities|directions|values",
    help="What an output means, where that is not recognised; directions: vectors that are compared by their cosine, "
    "as embeddings. May be given again.",
)


json_path_option = click.option(
    "--json",
    "json_path",
    metavar="FILE|-",
    shell_complete=completion.files,
    help="Write the result as JSON; - prints it, and nothing else, on stdout.",
)


def json_option(function: F) -> F:
    """`--json FILE|-` and the `--force` that lets it, and the other outputs, replace a file."""
    return json_path_option(click.option("--force", is_flag=True, help="Replace outputs that exist.")(function))


verbose_option = click.option(
    "-v",
    "--verbose",
    count=True,
    expose_value=False,
    callback=take_verbose,
    help="Say more on stderr, as `vsfix -v` does; -vv says everything.",
)

html_option = click.option(
    "--html", type=click.Path(path_type=Path), metavar="FILE", help="Also write a report as one HTML file."
)


def input_shape_option(text: str) -> Callable[[F], F]:
    """`--input-shape CxHxW`."""
    return click.option("--input-shape", callback=_parse_shape, metavar="CxHxW", help=text)


def _parse_shape(ctx: click.Context, param: click.Parameter, value: str | None) -> tuple[int, ...] | None:
    """`3x32x32` as a tuple of sides."""
    if value is None:
        return None
    if not re.fullmatch(r"[1-9]\d{0,8}(x[1-9]\d{0,8})*", value):
        raise click.BadParameter(f"'{value}': write the sides of one input without the batch, as 3x32x32", ctx, param)
    return tuple(int(side) for side in value.split("x"))


def parse_numbers(ctx: click.Context, param: click.Parameter, value: str | None) -> tuple[float, ...] | None:
    """`0.485,0.456,0.406` as numbers."""
    try:
        return None if value is None else tuple(float(number) for number in value.split(","))
    except ValueError:
        raise click.BadParameter(f"'{value}': write numbers as 0.485,0.456,0.406", ctx, param) from None


def parse_sides(ctx: click.Context, param: click.Parameter, value: str | None) -> tuple[int, ...] | None:
    """`224x224`, or `224` for both sides."""
    if value is None:
        return None
    if not re.fullmatch(r"[1-9]\d{0,5}(x[1-9]\d{0,5})?", value):
        raise click.BadParameter(f"'{value}': write height and width as 224x224", ctx, param)
    height, _, width = value.partition("x")
    return int(height), int(width or height)


def parse_output_kinds(texts: tuple[str, ...]) -> dict[str, str]:
    """Reads `NAME=MEANING` of each."""
    kinds: dict[str, str] = {}
    for text in texts:
        name, found, meaning = text.rpartition("=")
        if not found or not name:
            raise click.BadParameter(f"'{text}': write NAME=classes, as in logits=classes", param_hint="--output-kind")
        kinds[name] = meaning
    return kinds
