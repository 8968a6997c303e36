"""`aic doctor`."""

import json
from contextlib import suppress
from dataclasses import asdict

import click

from aiocodec.cli.options import EPILOG
from aiocodec.cli.report import emit, say
from aiocodec.loading import loading


@click.command(epilog=EPILOG)
@click.option("--json", "as_json", is_flag=True, help="One JSON object per check.")
def doctor(as_json: bool) -> None:
    """Check that this installation computes what it should: versions, devices, memory, weights, and the
    arithmetic that files depend on. Exit code 1 where a check fails."""
    from aiocodec.doctor import examine, report

    failed = False
    with suppress(Exception), loading("torch"):  # a signal waits; what fails, the checks say
        import torch  # noqa: F401
    for check in examine():
        failed |= check.ok is False
        if as_json:
            emit(json.dumps(asdict(check)) + "\n")
        else:
            say(report(check))
    if failed:
        raise click.exceptions.Exit(1)
