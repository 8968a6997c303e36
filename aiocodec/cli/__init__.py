"""The command line; the only package that prints or exits."""

from aiocodec.cli.main import cli, main

__all__ = ["cli", "main"]
