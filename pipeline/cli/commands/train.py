"""`vsfix train`: a network of the paper, with noise at a site of the paper."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from vsfix.pipeline.cli.completion import DATA, NETWORKS, NOISES, RECIPES, words
from vsfix.pipeline.cli.options import json_path_option, seed_option, verbose_option
from vsfix.pipeline.host.terminal_text import print_line

if TYPE_CHECKING:
    from rich.table import Table

    from vsfix.trainers.training.checkpoint import EpochMetrics
    from vsfix.trainers.training.training_loop import TrainingResult

_IMAGE_SIZE = 224
_DECODED = ("imagefolder:", "hf:")


@click.command(name="train")
@click.option(
    "--model",
    required=True,
    metavar="M",
    shell_complete=words(NETWORKS),
    help="For small images preresnet-DEPTH (as preresnet-20), wrn-DEPTH-WIDEN (wrn-16-4), densenet-DEPTH-GROWTH "
    "(densenet-40-12), resnext-DEPTH-CARDINALITYxWIDTHd (resnext-29-8x64d) or mlp-LAYERS; for large ones resnet-50, "
    "resnext-50-32x4d, seresnet-50, seresnext-50-32x4d, senet-154.",
)
@click.option(
    "--data",
    required=True,
    metavar="D",
    shell_complete=words(DATA, or_files=True),
    help="digits, fashion-mnist[:DIR], cifar10:DIR, cifar100:DIR, imagefolder:DIR, hf:NAME, or FILE.npz with x_train, "
    "y_train, x_test, y_test.",
)
@click.option(
    "--image-size",
    type=click.IntRange(min=8),
    metavar="N",
    help="Of imagefolder and hf: what images are brought to.  [default: 224]",
)
@click.option(
    "--workers",
    type=click.IntRange(min=0),
    metavar="N",
    help="Of imagefolder and hf: processes that decode images, for each that trains.  [default: its share of cores]",
)
@click.option(
    "--noise",
    multiple=True,
    default=("none",),
    metavar="[SITE=]KIND:VALUE",
    shell_complete=words(NOISES),
    help="dropout, feature-dropout, drop-path, gaussian-dropout, alpha-dropout, uout, uout-bernoulli or uout-gaussian, "
    "as in dropout:0.5; once for each site, as --noise a=dropout:0.5 --noise last=uout:0.1.  "
    "[default: none]",
)
@click.option(
    "--site",
    type=click.Choice(["a", "b", "last"]),
    default="a",
    show_default=True,
    help="Where the noise stands that names no site: a, upstream of a BatchNorm; b, upstream of a convolution or "
    "downstream of a BatchNorm; last, once upstream of the classifier.",
)
@click.option(
    "--recipe",
    default="quick",
    show_default=True,
    metavar="R",
    shell_complete=words(RECIPES),
    help="quick, or that of a paper: preresnet, wrn, densenet, resnext (small images), resnet, senet (ImageNet). The "
    "options below change a part of it.",
)
@click.option("--epochs", type=int, metavar="N", help="Passes over the images.")
@click.option("--batch-size", type=int, metavar="N", help="Images of a step, over all devices together.")
@click.option("--lr", type=float, metavar="X", help="The peak of the learning rate.")
@click.option(
    "--schedule",
    metavar="S",
    help="cosine, or step:SHARE,...[:DECAY] as in step:0.5,0.75: where in the run the rate falls, and to what share.",
)
@click.option("--weight-decay", type=float, metavar="X", help="L2 penalty on all parameters.")
@click.option("--label-smoothing", type=float, metavar="X", help="The share of the target that all classes share.")
@click.option("--augment", metavar="A", help="none, or parts of crop:4,flip,cutout:8,mixup:0.2.")
@click.option(
    "--average", type=float, default=0.0, metavar="DECAY", help="Export a moving average of the weights, as of 0.999."
)
@click.option("--samples", type=int, metavar="N", help="Train on N images, chosen under --seed.  [default: all]")
@click.option("--accumulate", type=int, default=1, metavar="N", help="Take a device's part of a batch in N parts.")
@click.option("--sync-batchnorm", is_flag=True, help="BatchNorm over all GPUs together.")
@click.option("--width", type=int, default=1, show_default=True, help="What the usual channels are multiplied by.")
@click.option("--precision", type=click.Choice(["auto", "32", "bf16"]), default="auto", show_default=True)
@click.option("--compile", "compiled", is_flag=True, help="Run the network through torch.compile.")
@click.option(
    "--log-shift", type=click.IntRange(min=0), default=0, metavar="N", help="Log each BatchNorm's shift every N epochs."
)
@click.option("--tensorboard", is_flag=True, help="Log for TensorBoard too.")
@click.option(
    "--save-every",
    type=click.FloatRange(min=0),
    default=10,
    show_default=True,
    metavar="MINUTES",
    help="Save in the middle of an epoch too.",
)
@seed_option
@click.option("--force", is_flag=True, help="Start again, whatever the folder holds.")
@json_path_option
@verbose_option
@click.option(
    "-o",
    "--output",
    required=True,
    type=click.Path(path_type=Path),
    help="The folder of the run; a run that was broken off goes on from where it was last saved.",
)
def command(
    model: str,
    data: str,
    image_size: int | None,
    workers: int | None,
    noise: tuple[str, ...],
    site: str,
    recipe: str,
    epochs: int | None,
    batch_size: int | None,
    lr: float | None,
    schedule: str | None,
    weight_decay: float | None,
    label_smoothing: float | None,
    augment: str | None,
    average: float,
    samples: int | None,
    accumulate: int,
    sync_batchnorm: bool,
    width: int,
    precision: str,
    compiled: bool,
    log_shift: int,
    tensorboard: bool,
    save_every: float,
    seed: int,
    force: bool,
    json_path: str | None,
    output: Path,
) -> None:
    """Train a network; the checkpoint is OUTPUT/checkpoint.pt.

    On a GPU if there is one; under torchrun, on many.
    """
    from dataclasses import asdict

    from vsfix.pipeline.cli.output import json_output
    from vsfix.pipeline.host.progress import progress_wanted
    from vsfix.trainers.networks.network import network_for
    from vsfix.trainers.training.augmentation import Augmentation
    from vsfix.trainers.training.recipes import find_recipe
    from vsfix.trainers.training.training_config import Schedule, TrainingConfig
    from vsfix.trainers.training.training_loop import TrainingOptions, train

    if not data.startswith(_DECODED) and (image_size, workers) != (None, None):
        raise click.UsageError(
            f"--image-size and --workers are of imagefolder and hf; {data} has images of its own size"
        )
    speaks = os.environ.get("RANK", "0") == "0"  # one process of many
    with json_output("train", json_path if speaks else None, force=force, again=True) as out:
        out.require()
        chosen = find_recipe(recipe)
        asked = {
            "epochs": epochs,
            "batch_size": batch_size,
            "learning_rate": lr,
            "schedule": schedule and Schedule.parse(schedule, chosen.get("schedule", Schedule()).warmup),
            "weight_decay": weight_decay,
            "label_smoothing": label_smoothing,
            "augmentation": None if augment is None else Augmentation.parse(augment),
            "average": average,
            "accumulate": accumulate,
            "sync_batch_norm": sync_batchnorm,
            "compiled": compiled,
            "seed": seed,
            "samples": samples,
            "precision": precision,
        }
        side = image_size or _IMAGE_SIZE
        network = network_for(model, data, noise=noise, site=site, width=width, size=(side, side))
        given = {name: value for name, value in asked.items() if value is not None}
        config = TrainingConfig(data, network, **{**chosen, **given})
        options = TrainingOptions(
            force=force,
            log_shift=log_shift,
            tensorboard=tensorboard,
            save_every=60 * save_every,
            workers=_share_of_cores() if workers is None else workers,
            on_epoch=None if progress_wanted() else _say_epoch,
        )
        result = train(config, output, options)
        if not speaks:
            return
        best = f"top-1 {100 * result.test_accuracy:.2f} % after {config.epochs} epochs"
        out.tell("PASS", f"{best}; checkpoint: {result.checkpoint}", details=asdict(result))
        out.show_view(
            [_table(f"{model} on {data}, noise {network.noise}", result.metrics), *_resumed(result, config.epochs)]
        )
        out.show_view([f"checkpoint: {result.checkpoint}"])


def _table(title: str, metrics: Sequence[EpochMetrics]) -> Table:
    """One row for each epoch."""
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    for heading in ("epoch", "training loss", "test top-1", "seconds", "images/s"):
        table.add_column(heading, justify="right")
    for row in metrics:
        cells = (f"{row.train_loss:.4f}", _accuracy(row), f"{row.seconds:.1f}")
        table.add_row(str(row.epoch), *cells, f"{row.images_per_second:,.0f}")
    return table


def _accuracy(row: EpochMetrics) -> str:
    return "-" if row.test_accuracy is None else f"{100 * row.test_accuracy:.2f} %"


def _resumed(result: TrainingResult, epochs: int) -> list[str]:
    """The line that says what an earlier call had done already; none where it had done nothing."""
    if result.resumed_from == epochs:
        return ["was finished already: nothing was trained and nothing logged; --force starts again"]
    if not result.resumed_from and not result.resumed_step:
        return []
    where = f"step {result.resumed_step} of epoch {result.resumed_from + 1}"
    return [f"went on after {where if result.resumed_step else f'epoch {result.resumed_from}'}; --force starts again"]


def _share_of_cores() -> int:
    """The cores of this machine over the processes that torchrun started on it."""
    return max(1, (os.cpu_count() or 1) // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def _say_epoch(metrics: EpochMetrics) -> None:
    """A line of the log for each epoch, where there is no bar."""
    print_line(
        f"epoch {metrics.epoch}: loss {metrics.train_loss:.4f}, test top-1 {_accuracy(metrics)}, "
        f"{metrics.images_per_second:,.0f} images/s",
        err=True,
    )
