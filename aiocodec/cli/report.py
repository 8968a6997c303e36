"""What is said: lines for people on stderr, data and JSON on stdout, and what came of a batch."""

import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import click

from aiocodec.errors import AicError, BatchError, LimitError, OutputError, out_of_memory
from aiocodec.files import abandon, is_same_file

Row = dict[str, Any]  # what is reported of a file; keys as in the JSON


def say(*lines: str, err: bool = False) -> None:
    """Print lines. What would garble the terminal is shown as "?", in names of files for example."""
    text = "\n".join("".join(c if c.isprintable() else "?" for c in line) for line in lines)
    try:
        click.echo(text, err=err)
    except OSError as fault:
        abandon(sys.stderr if err else sys.stdout)
        if not err:
            raise OutputError(f"stdout cannot be written: {fault.strerror}") from None


def emit(text: str) -> None:
    """Write data to stdout as it is."""
    if sys.stdout is None:
        raise OutputError("stdout is closed")
    try:
        click.echo(text, nl=False)
    except OSError as fault:
        abandon(sys.stdout)
        raise OutputError(f"stdout cannot be written: {fault.strerror}") from None


@dataclass
class Reporter:
    """What a command says of its files while it works, and of those that fail."""

    lines: Callable[[Row], list[str]]  # the report for people
    as_json: bool
    quiet: bool = False  # errors only
    lines_err: bool = True  # lines go to stderr
    json_err: bool = False  # JSON goes to stderr, because stdout carries a file
    bar_shown: bool = False

    def done(self, row: Row) -> None:
        """One file is finished."""
        if self.as_json:
            self._say(json.dumps(row), err=self.json_err)
        elif not self.quiet:
            self._say(*self.lines(row), err=self.lines_err)

    def failed(self, path: str, error: AicError) -> None:
        """One file could not be done."""
        if self.as_json:
            row = {"input": path, "error": str(error), "exit_code": error.exit_code}
            self._say(json.dumps(row), err=self.json_err)
        if not (self.as_json and self.json_err):
            self._say(f"aic: {path}: {error}", err=True)

    @contextmanager
    def progress(self, count: int) -> Iterator[Callable[[], None]]:
        """A bar on stderr for more than one file, where lines go there and it is a terminal; gives
        the function that advances it."""
        lines = self.lines_err and not self.quiet and not self.as_json
        if count < 2 or not lines or sys.stderr is None or not sys.stderr.isatty():
            yield lambda: None
            return
        with click.progressbar(length=count, file=sys.stderr, show_pos=True) as bar:
            self.bar_shown = True
            try:
                yield lambda: bar.update(1)
            finally:
                self.bar_shown = False

    def _say(self, *lines: str, err: bool) -> None:
        if self.bar_shown:  # its next step draws it again, below
            click.echo("\r\x1b[K", nl=False, err=True)
        say(*lines, err=err)


def run_batch(
    pairs: Sequence[tuple[str, str]], work: Callable[[str, str], Row], reporter: Reporter
) -> None:
    """Do every (input, output). One alone fails with its own error; of several, the others are still
    done and a BatchError follows."""
    failures: list[AicError] = []
    written: set[str] = set()
    with reporter.progress(len(pairs)) as advance:
        for source, target in pairs:
            try:
                if target in written:
                    raise OutputError(f"{target} has just been written, from another input")
                if target != "-" and is_same_file(source, target):
                    raise OutputError("the output is the input")
                row = work(source, target)
            except click.UsageError:
                raise
            except Exception as fault:
                error = as_aic_error(fault)
                reporter.failed(source, error)
                failures.append(error)
            else:
                if target != "-":
                    written.add(target)
                reporter.done(row)
            advance()
    if failures and len(pairs) == 1:
        raise click.exceptions.Exit(failures[0].exit_code)
    if failures:
        raise BatchError(f"{len(failures)} of {len(pairs)} files failed")


def as_aic_error(fault: Exception) -> AicError:
    """The error to report for an exception: itself, or what should never happen by its name."""
    if isinstance(fault, AicError):
        return fault
    if os.environ.get("AIC_DEBUG"):
        raise fault
    if out_of_memory(fault):
        return LimitError("not enough memory")
    text = " ".join(str(fault).split())[:200]
    return AicError(
        f"internal error: {type(fault).__name__}: {text} (AIC_DEBUG=1 shows the traceback)"
    )
