"""`vsfix train`: a network of the paper, with noise at a site of the paper."""

from __future__ import annotations

from pathlib import Path

import click

from .options import seed_option


@click.command(name="train")
@click.option(
    "--model",
    required=True,
    metavar="M",
    help="preresnet-DEPTH (as preresnet-20), wrn-DEPTH-WIDEN (wrn-16-4), densenet-DEPTH-GROWTH (densenet-40-12), "
    "resnext-DEPTH-CARDINALITYxWIDTHd (resnext-29-8x64d) or mlp-LAYERS.",
)
@click.option("--data", required=True, metavar="D", help="digits, or fashion-mnist[:DIR].")
@click.option(
    "--noise", default="none", show_default=True, metavar="KIND:VALUE", help="dropout:0.5, uout:0.1, or none."
)
@click.option(
    "--site",
    type=click.Choice(["a", "b", "last"]),
    help="Where the noise stands: a, in front of a BatchNorm; b, in front of a convolution or behind a BatchNorm; "
    "last, once in front of the classifier.  [default: a]",
)
@click.option("--epochs", type=int, default=10, show_default=True)
@click.option("--samples", type=int, metavar="N", help="Train on N images, chosen under --seed.  [default: all]")
@click.option("--batch-size", type=int, default=128, show_default=True, metavar="N")
@click.option("--lr", type=float, default=0.1, show_default=True, help="The peak of the learning rate.")
@click.option("--weight-decay", type=float, default=5e-4, show_default=True)
@click.option("--width", type=int, default=1, show_default=True, help="What the usual channels are multiplied by.")
@click.option("--precision", type=click.Choice(["auto", "32", "bf16"]), default="auto", show_default=True)
@seed_option
@click.option("--force", is_flag=True, help="Start again, whatever the folder holds.")
@click.option(
    "-o",
    "--output",
    required=True,
    type=click.Path(path_type=Path),
    help="The folder of the run; a run that was broken off goes on from its last epoch.",
)
def command(
    model: str,
    data: str,
    noise: str,
    site: str | None,
    epochs: int,
    samples: int | None,
    batch_size: int,
    lr: float,
    weight_decay: float,
    width: int,
    precision: str,
    seed: int,
    force: bool,
    output: Path,
) -> None:
    """Train a network; the checkpoint is OUTPUT/checkpoint.pt.

    On a GPU if there is one; under torchrun, on many.
    """
    import os

    from rich.table import Table

    from vsfix.pipeline.console import print_table, progress_wanted
    from vsfix.pipeline.training_network import network_for
    from vsfix.trainers.training_config import TrainingConfig
    from vsfix.trainers.training_loop import train

    config = TrainingConfig(
        data=data,
        network=network_for(model, data, noise=noise, site=site, width=width),
        epochs=epochs,
        batch_size=batch_size,
        learning_rate=lr,
        weight_decay=weight_decay,
        seed=seed,
        samples=samples,
        precision=precision,
    )
    result = train(config, output, force=force, progress=progress_wanted())
    if os.environ.get("RANK", "0") != "0":
        return  # one process of many speaks
    table = Table(title=f"{model} on {data}, noise {noise}", title_justify="left")
    for heading in ("epoch", "training loss", "test top-1", "seconds"):
        table.add_column(heading, justify="right")
    for row in result.metrics:
        table.add_row(str(row.epoch), f"{row.train_loss:.4f}", f"{100 * row.test_accuracy:.2f} %", f"{row.seconds:.1f}")
    print_table(table)
    if result.resumed_from:
        click.echo(f"went on behind epoch {result.resumed_from}; --force starts again")
    click.echo(f"checkpoint: {result.checkpoint}")
