"""`vsfix package`: a model or engines as a Triton model repository."""

from __future__ import annotations

from pathlib import Path

import click

from vsfix.pipeline.cli.options import json_option, verbose_option


@click.command(name="package")
@click.argument("sources", metavar="MODEL|ENGINE...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="The folder of the repository.")
@click.option("--name", help="Of the model.  [default: the name of the first file]")
@click.option("--version", type=click.IntRange(min=1), default=1, show_default=True, help="Of the model.")
@click.option(
    "--max-batch-size",
    type=click.IntRange(min=0),
    metavar="N",
    help="Samples in a batch; 0: requests hold the batch themselves.  [default: the engine's largest; 64 for an ONNX "
    "file with a free batch; 0 where it is fixed]",
)
@click.option(
    "--max-queue-delay",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    metavar="MICROSECONDS",
    help="How long a request waits for others.",
)
@click.option(
    "--device",
    type=click.Choice(["auto", "gpu", "cpu"]),
    help="Where an ONNX file runs; auto: on the GPU where there is one.  [default: auto; engines: gpu]",
)
@click.option("--compute-capability", metavar="8.9", help="Of the GPU of an engine whose sidecar does not say it.")
@click.option(
    "--kserve", type=click.Path(path_type=Path), metavar="FILE", help="Also write an InferenceService (YAML)."
)
@click.option("--storage-uri", metavar="URI", help="Where KServe will find the repository, as s3://bucket/repository.")
@json_option
@verbose_option
def command(
    sources: tuple[Path, ...],
    output: Path,
    name: str | None,
    version: int,
    max_batch_size: int | None,
    max_queue_delay: int,
    device: str | None,
    compute_capability: str | None,
    kserve: Path | None,
    storage_uri: str | None,
    json_path: str | None,
    force: bool,
) -> None:
    """Write the folder OUTPUT/NAME of a Triton model repository.

    An ONNX file runs in Triton's onnxruntime backend. Engines of TensorRT, each with its sidecar, run on the GPUs that
    they were built for and are refused on every other; give those of several GPUs together.
    """
    from vsfix.pipeline.cli.output import json_output
    from vsfix.pipeline.serving.packaging import PackageConfig, package
    from vsfix.pipeline.tensorrt.engine_file import sidecar_path

    with json_output("package", json_path, force=force) as out:
        config = PackageConfig(
            name=name,
            version=version,
            largest_batch=max_batch_size,
            delay=max_queue_delay,
            device=device,
            compute_capability=compute_capability,
            storage_uri=storage_uri,
        )
        inputs = [file for source in sources for file in (source, sidecar_path(source))]
        out.require(inputs=inputs, rewritten=[kserve])
        result = package(sources, output, config, service=kserve, force=force)
        largest, warnings = result.config.batching.largest, [result.warning] if result.warning else []
        batches = f"batches up to {largest}" if largest else "no batching"
        verdict = f"backend: {result.config.backend}, {batches}"
        out.tell("WARN" if warnings else "PASS", verdict, warnings, result.to_dict())
        out.show_view([verdict, *(f"SKIP {note}" for note in result.notes), *(f"WARN {text}" for text in warnings)])
        out.wrote(*(result.folder / file for file in result.files), result.service)
