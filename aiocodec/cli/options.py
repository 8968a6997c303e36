"""What the commands have in common: exit codes, and options that several of them take."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from aiocodec.config import DEFAULT_MAX_PIXELS, VARIANTS

EXIT_CODES = {
    0: "done",
    1: "internal error",
    2: "wrong usage",
    3: "an image that cannot be read",
    4: "an .aic file that is corrupt, truncated or cannot be read",
    5: "an .aic file of an unsupported version or another model, or no weights",
    6: "a limit is exceeded: pixels, memory or file size",
    7: "the output exists or cannot be written",
    8: "some files of a batch failed, the others are done",
    9: "training cannot go on, its last checkpoint is good",
    130: "interrupted",
    143: "terminated",
}
EPILOG = "\b\nExit codes:\n" + "\n".join(f"{code:5}  {text}" for code, text in EXIT_CODES.items())

MODELS = tuple(VARIANTS)


def common_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options that encode and decode share."""
    for option in reversed(
        (
            click.option(
                "--out-dir",
                metavar="DIR",
                help="Write every output into this folder; allows several inputs.",
            ),
            model_option,
            device_option,
            threads_option,
            click.option(
                "--max-pixels",
                type=click.IntRange(1),
                default=DEFAULT_MAX_PIXELS,
                show_default=True,
                help="Refuse larger pictures.",
            ),
            click.option("-f", "--force", is_flag=True, help="Overwrite existing outputs."),
            click.option(
                "--json", "as_json", is_flag=True, help="Report one JSON object per file."
            ),
            click.option("--quiet", is_flag=True, help="Report errors only."),
            click.option("--verbose", is_flag=True, help="Report model and device too."),
        )
    ):
        command = option(command)
    return command


model_option = click.option(
    "--model", type=click.Choice(MODELS), help="Transforms to use; by default the best that fits."
)
device_option = click.option(
    "--device",
    type=click.Choice(["auto", "cpu", "cuda"]),
    default="auto",
    show_default=True,
    help="Where to compute; auto is cuda where there is one.",
)
FOLDER = click.Path(exists=True, file_okay=False, path_type=Path)
threads_option = click.option(
    "--threads", type=click.IntRange(1), help="CPU threads; by default all cores."
)


def grouped(*options: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Several options as one decorator, in their order."""
    return lambda command: functools.reduce(lambda f, option: option(f), reversed(options), command)
