"""What is said: lines for people on stderr, data and JSON on stdout, and what came of a batch."""

import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field

import click

from aiocodec.batch import Row, Tally
from aiocodec.errors import AicError, BatchError, BrokenPipe, OutputError
from aiocodec.files import abandon, unwritable


def say(*lines: str, err: bool = False) -> None:
    """Print lines. What would garble the terminal is shown as "?", in names of files for example."""
    text = "\n".join("".join(c if c.isprintable() else "?" for c in line) for line in lines) + "\n"
    if not err:
        emit(text)
        return
    try:
        click.echo(text, nl=False, err=True)
    except OSError:
        abandon(sys.stderr)


def emit(text: str) -> None:
    """Write data to stdout as it is; OutputError where that cannot be done."""
    if sys.stdout is None or not sys.stdout.writable():
        raise OutputError("stdout is closed")
    try:
        click.echo(text, nl=False)
    except OSError as fault:
        abandon(sys.stdout)
        raise unwritable("stdout", fault) from None


@dataclass
class Reporter:
    """What a command says of its files while it works, of those that fail, and in the end of all."""

    lines: Callable[[Row], list[str]]  # the report for people
    as_json: bool
    quiet: bool = False  # errors only
    lines_err: bool = True  # lines go to stderr
    json_err: bool = False  # JSON goes to stderr, because stdout carries a file
    summary: bool = False  # several files are summed up
    bar_shown: bool = False
    started: float = field(default_factory=time.perf_counter)

    def report(
        self,
        outcomes: Iterable[tuple[str, Row | AicError]],
        count: int | None,
        tally: Tally | None = None,
    ) -> None:
        """Say what came of each of `count` inputs, as it comes, then of all, those included that `tally`
        has counted already. One alone fails with its own exit code; of several, the others are still
        done and a BatchError follows. BrokenPipe is raised at once: nobody waits for the rest.

        Args:
            count: None where it is not known beforehand.
        """
        tally, failure = tally or Tally(), None
        try:
            with self._counting(count or 0) as advance:
                for path, outcome in outcomes:
                    tally.count(outcome)
                    if isinstance(outcome, BrokenPipe):
                        raise outcome
                    if isinstance(outcome, AicError):
                        self._failed(path, outcome)
                        failure = outcome
                    else:
                        self._done(path, outcome)
                    advance()
        except AicError as fault:
            if count is None and tally.done + tally.failed and not isinstance(fault, BrokenPipe):
                self._sum_up(tally)
            raise
        total = tally.done + tally.skipped + tally.failed
        if self.summary and (count is None or count > 1):
            self._sum_up(tally)
        if failure and total == 1:
            raise click.exceptions.Exit(failure.exit_code)
        if tally.failed:
            raise BatchError(f"{tally.failed} of {total} files failed")

    @contextmanager
    def progress(self) -> Iterator[Callable[[float], None] | None]:
        """A bar on stderr for one large file, if that is a terminal; gives the function that is told
        the fraction that is done."""
        if not self._has_terminal():
            yield None
            return
        shown = -1

        def tell(fraction: float) -> None:
            nonlocal shown
            percent = int(100 * fraction)
            if percent != shown:
                shown, self.bar_shown = percent, True
                bar = "#" * (percent * 36 // 100)
                click.echo(f"\r[{bar:-<36}] {percent:3}%", nl=False, err=True)

        try:
            yield tell
        finally:
            self._clear()
            self.bar_shown = False

    def _done(self, path: str, row: Row) -> None:
        if self.as_json:
            self._say(json.dumps(row), err=self.json_err)
        elif not self.quiet:
            for warning in row.get("warnings", ()):
                self._say(f"aic: {path}: warning: {warning}", err=True)
            self._say(*self.lines(row), err=self.lines_err)

    def _failed(self, path: str, error: AicError) -> None:
        if self.as_json:
            row = {"input": path, "error": str(error), "exit_code": error.exit_code}
            self._say(json.dumps(row), err=self.json_err)
        if not (self.as_json and self.json_err):
            self._say(f"aic: {path}: {error}", err=True)

    def _sum_up(self, tally: Tally) -> None:
        tally.seconds = round(time.perf_counter() - self.started, 3)
        if self.as_json:
            self._say(json.dumps({"summary": asdict(tally)}), err=self.json_err)
        elif not self.quiet:
            line = f"{_files(tally.done)} done"
            line += f", {tally.skipped} skipped" if tally.skipped else ""
            line += f", {tally.failed} failed" if tally.failed else ""
            sizes = f"{_size(tally.input_bytes)} -> {_size(tally.output_bytes)}"
            self._say(f"{line}: {sizes}, {tally.seconds:.1f} s", err=True)

    @contextmanager
    def _counting(self, count: int) -> Iterator[Callable[[], None]]:
        """A bar for more than one file; gives the function that advances it."""
        if count < 2 or not self._has_terminal():
            yield lambda: None
            return
        with click.progressbar(length=count, file=sys.stderr, show_pos=True) as bar:
            self.bar_shown = True
            try:
                yield lambda: bar.update(1)
            finally:
                self.bar_shown = False

    def _has_terminal(self) -> bool:
        """Whether bars are wanted: lines go to stderr, and it is a terminal."""
        lines = self.lines_err and not self.quiet and not self.as_json
        return lines and sys.stderr is not None and sys.stderr.isatty()

    def _say(self, *lines: str, err: bool) -> None:
        self._clear()  # the next step of a bar draws it again, below
        say(*lines, err=err)

    def _clear(self) -> None:
        if self.bar_shown:
            click.echo("\r\x1b[K", nl=False, err=True)


def _files(count: int) -> str:
    return "1 file" if count == 1 else f"{count} files"


def _size(length: int) -> str:
    """A number of bytes for people."""
    for unit, name in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if length >= unit:
            return f"{length / unit:.1f} {name}"
    return f"{length} bytes"
