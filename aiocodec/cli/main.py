"""The command `aic`, and how it ends.

An error is one line on stderr and one of EXIT_CODES, never a traceback (unless AIC_DEBUG is set).
torch, numpy and Pillow are imported only by the commands that need them, so that `--help` and `info`
start at once.
"""

import io
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

import click

from aiocodec import __version__, signals
from aiocodec.cli.coding import decode, encode
from aiocodec.cli.compare import compare
from aiocodec.cli.doctor import doctor
from aiocodec.cli.evaluate import evaluate
from aiocodec.cli.info import info
from aiocodec.cli.man import manual
from aiocodec.cli.options import EPILOG, EXIT_CODES
from aiocodec.cli.report import emit, say
from aiocodec.cli.train import train
from aiocodec.cli.view import view
from aiocodec.errors import BrokenPipe, OutputError, as_aic_error
from aiocodec.files import abandon


def print_manual(ctx: click.Context, param: click.Parameter, wanted: bool) -> None:
    """A callback that prints the manual page, and that is all."""
    if wanted and not ctx.resilient_parsing:
        emit(manual(ctx.command, "aic"))
        ctx.exit()


@click.group(
    epilog=EPILOG, no_args_is_help=False, context_settings={"help_option_names": ["-h", "--help"]}
)
@click.version_option(__version__, "-V", "--version", prog_name="aic")
@click.option(
    "--man",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=print_manual,
    help="Print the manual page, for man -l - to show.",
)
def cli() -> None:
    """Compress photographs, and restore them on the way: noise goes in, a clean picture comes out."""


for command in (encode, decode, info, view, compare, evaluate, train, doctor):
    cli.add_command(command)


def main(args: Sequence[str] | None = None) -> NoReturn:
    """Run `aic` and exit; every error becomes one line on stderr and one of EXIT_CODES."""
    signals.install()
    _take_closed_places()
    if sys.stdout is None:  # click prints nothing then, and is content; here it is an error
        sys.stdout = open(os.devnull)  # noqa: SIM115 (as long as the process)
    stdout = sys.stdout
    if isinstance(stdout, io.TextIOWrapper):
        stdout.reconfigure(errors="backslashreplace")  # names that its encoding lacks, as on stderr
        if isinstance(
            stdout.buffer, io.RawIOBase
        ):  # unbuffered: what it does not take would be lost
            sys.stdout = stdout = open(  # noqa: SIM115 (as long as the process)
                stdout.fileno(), "w", encoding=stdout.encoding, errors=stdout.errors, closefd=False
            )
    try:
        code = cli.main(args, prog_name="aic", standalone_mode=False) or 0
    except signals.Stopped as stopped:
        signals.undo()
        code = stopped.code
        say(f"aic: {EXIT_CODES[code]}", err=True)
    except BrokenPipe as error:
        code = error.exit_code
    except SystemExit:
        if sys.stdout is stdout:  # it was a shell that wanted to complete a word
            raise
        abandon(stdout)  # click was printing when the pipe broke, and has put its own stream there
        code = BrokenPipe.exit_code
    except click.UsageError as error:
        code = error.exit_code
        command = error.ctx.command_path if error.ctx else "aic"
        say(f"aic: {error.format_message()} (see {command} --help)", err=True)
    except Exception as fault:
        if isinstance(fault, io.UnsupportedOperation) and not stdout.writable():
            code = OutputError.exit_code
            say("aic: stdout is closed", err=True)
        elif isinstance(fault, OSError) and fault.errno:
            # click was printing help, or training writing its files
            code = OutputError.exit_code
            if not fault.filename:
                abandon(sys.stdout)
            say(f"aic: {fault.filename or 'stdout'}: {fault.strerror}", err=True)
        else:
            reason = as_aic_error(fault)
            code = reason.exit_code
            say(f"aic: {reason}", err=True)
    sys.exit(code)


def _take_closed_places() -> None:
    """Let /dev/null have the descriptors of stdin, stdout and stderr that are closed: the next file to be
    opened would get them, and what is meant for a stream would land in it. It is opened for what the
    stream is not, so that using it is an error still."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDONLY if descriptor else os.O_WRONLY)
