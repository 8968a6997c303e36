"""`aic info`."""

import json
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import click

from aiocodec.batch import Row
from aiocodec.cli.options import EPILOG, FILE_NAME, MODEL
from aiocodec.cli.report import Reporter, say
from aiocodec.container import ChunkType, Container, unpack, unpack_latents
from aiocodec.errors import AicError, ModelError, as_aic_error
from aiocodec.files import read_aic
from aiocodec.loading import loading


@click.command(epilog=EPILOG)
@click.argument("paths", metavar="[IN]...", type=FILE_NAME, nargs=-1)
@click.option("--model", type=MODEL, help="Describe a model instead of files.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object per file.")
def info(paths: tuple[str, ...], model: str | None, as_json: bool) -> None:
    """Say what .aic files hold, or with --model what a model costs."""
    if (model is None) == (not paths):
        raise click.UsageError("give either files or --model NAME")
    if model is not None:
        row = describe_model(model)
        say(*([json.dumps(row)] if as_json else table(row)))
        return

    def outcomes() -> Iterator[tuple[str, Row | AicError]]:
        for path in paths:
            try:
                data = read_aic(path)
                yield path, describe(path, data, unpack(data, max_pixels=1 << 32))
            except Exception as fault:
                yield path, as_aic_error(fault)

    def lines(row: Row) -> list[str]:
        return table(row) + ([""] if len(paths) > 1 else [])

    Reporter(lines, as_json, lines_err=False).report(outcomes(), len(paths))


def describe(path: str, data: bytes, container: Container) -> Row:
    """What `aic info` says of a file."""
    from aiocodec.pretrained import Manifest

    header = container.header
    unpack_latents(container.get(ChunkType.LATENTS) or b"", header.version)
    model: str | None = None
    with suppress(ModelError):
        model = Manifest.read().for_fingerprint(header.fingerprint)
    provenance = container.get(ChunkType.PROVENANCE)
    chunks: dict[str, int] = {}
    for kind, payload in container.chunks:
        name = ChunkType(kind).name.lower() if kind in list(ChunkType) else f"0x{kind:02x}"
        chunks[name] = chunks.get(name, 0) + len(payload)
    return {
        "input": path,
        "bytes": len(data),
        "version": header.version,
        "width": header.width,
        "height": header.height,
        "bpp": round(8 * len(data) / (header.width * header.height), 5),
        "quality": header.quality,
        "flags": [
            flag.name.lower() for flag in type(header.flags) if flag in header.flags and flag.name
        ],
        "fingerprint": header.fingerprint.hex(),
        "model": model,  # the one that decodes it here
        "encoder": provenance.decode("utf-8", "replace") if provenance else None,
        "chunks": chunks,  # bytes
    }


def describe_model(name: str) -> Row:
    """What `aic info --model` says; the only part of `info` that imports torch."""
    with loading("torch"):
        from aiocodec.model import complexity
    from aiocodec.pretrained import Manifest

    manifest = Manifest.read()
    cost = complexity(manifest.config(name))
    return {
        "model": name,
        "parameters": {"total": sum(cost.parameters.values()), **cost.parameters},
        "macs_256x256": {"total": sum(cost.macs.values()), **cost.macs},
        "weight_bytes": manifest.weight_bytes(name),
        "fingerprint": manifest.fingerprint(name).hex(),
        "default": manifest.models[0] == name,
    }


def table(row: Row) -> list[str]:
    """A row for people: a line for every value, numbers in groups of three digits."""

    def text(value: Any) -> str:
        if isinstance(value, bool):
            return "yes" if value else "no"
        if isinstance(value, int):
            return f"{value:,}"
        if isinstance(value, list):
            return ", ".join(value) or "none"
        return "none" if value is None else str(value)

    flat: Row = {}
    for key, value in row.items():
        key = key.replace("_", " ")
        if isinstance(value, dict):
            flat |= {f"{key} {part}": amount for part, amount in value.items()}
        else:
            flat[key] = value
    width = max(map(len, flat))
    return [f"{key:<{width}}  {text(value)}" for key, value in flat.items()]
