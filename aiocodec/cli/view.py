"""`aic view`."""

import functools
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import click

from aiocodec import signals
from aiocodec.batch import walk
from aiocodec.cli.options import EPILOG, FILE_NAME
from aiocodec.cli.report import say
from aiocodec.container import unpack_header
from aiocodec.errors import AicError, BitstreamError
from aiocodec.files import is_special, read_aic

PAGE = Path(__file__).parent.parent / "viewer"  # what the build of viewer/ writes

_INTERRUPTED = 130


@click.command(epilog=EPILOG)
@click.argument("paths", metavar="IN...", type=FILE_NAME, nargs=-1, required=True)
@click.option("-r", "--recursive", is_flag=True, help="Take the .aic files in folders.")
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=0,
    metavar="N",
    help="Port of this machine to serve the page on; by default any that is free.",
)
@click.option(
    "--no-browser",
    is_flag=True,
    help="Start no browser, only say the address. Other users of the machine can see which pages a browser "
    "is started with.",
)
def view(paths: tuple[str, ...], recursive: bool, port: int, no_browser: bool) -> None:
    """Show .aic files in the browser.

    The page and the files are served to this machine alone, at a secret address, until Ctrl-C, which is
    no failure here: the exit code is 0. Files are read when the page asks for them, so that reloading it
    shows what has changed; stdin, which may be one of them as "-", and other streams are read once.
    """
    files = [(_name(path), _content(path)) for path in _inputs(paths, recursive)]
    from aiocodec.serving import HOST, Server  # the server's modules take longer than the help

    try:
        server = Server(PAGE, files, port)
    except OSError as fault:
        why = f"port {port} of {HOST} cannot be had: {fault.strerror}"
        raise click.BadParameter(why, param_hint="--port") from None
    try:
        with server:
            count = "1 file" if len(files) == 1 else f"{len(files)} files"
            say(f"aic: {count} to be seen until Ctrl-C, at {server.address}", err=True)
            if not no_browser:
                _open(server.address)
            server.serve_forever()
    except signals.Stopped as stopped:
        if stopped.code != _INTERRUPTED:
            raise
    if sys.stderr is not None and sys.stderr.isatty():
        say(err=True)  # the terminal has shown ^C


def _inputs(paths: tuple[str, ...], recursive: bool) -> Iterator[str]:
    """The files that are meant, folders resolved."""
    for path in paths:
        if path == "-" or not os.path.isdir(path):
            yield path
            continue
        if not recursive:
            raise click.UsageError(f"{path} is a folder; -r (--recursive) takes the files in it")
        found = list(walk(path, frozenset({".aic"})))
        for source, why in found:
            if why is not None:
                raise BitstreamError(f"{source}: cannot be read: {why}")
            yield source
        if not found:
            raise BitstreamError(f"{path}: the folder has no .aic files")


def _content(path: str) -> Callable[[], bytes]:
    """What gives the bytes of a file, now and later, once it has been seen that it is an .aic file; the
    errors of `read_aic` and `unpack_header` have its name in front."""
    try:
        data = read_aic(path)
        unpack_header(data)
    except AicError as fault:
        raise type(fault)(f"{path}: {fault}") from None
    if path == "-" or is_special(path):
        return lambda: data
    return functools.partial(read_aic, os.path.abspath(path))


def _name(path: str) -> str:
    """What the page calls a file."""
    return "stdin.aic" if path == "-" else os.path.basename(path)


def _open(address: str) -> None:
    """Start the browser, and do not wait for it: one in the terminal stays until it is left."""
    import threading
    import webbrowser

    threading.Thread(target=webbrowser.open, args=(address,), daemon=True).start()
