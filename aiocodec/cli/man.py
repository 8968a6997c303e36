"""The manual page, made of the same tree of commands as the help."""

import re
from collections.abc import Iterator

import click

from aiocodec import __version__
from aiocodec.cli.options import EXIT_CODES

_OPTION = re.compile(r"(?<![\w-])(?:\\-){1,2}[a-zA-Z](?:\w|\\-)*")  # when "-" is escaped


def manual(root: click.Command, name: str) -> str:
    """The page of section 1 about `root`, a command of that name, and all commands below it: roff with the
    macros of man(7), in ASCII."""
    context = click.Context(root, info_name=name, **root.context_settings)
    summary, _, _ = (root.help or "").partition("\n\n")
    below = list(_below(context))
    leaves = [each for each in below if not isinstance(each.command, click.Group)]
    lines = [
        f'.TH {name.upper()} 1 "" "aiocodec {__version__}" "User Commands"',
        ".SH NAME",
        f"{_escape(name)} \\- {_escape(' '.join(summary.split()).rstrip('.'))}",
        ".SH SYNOPSIS",
        "\n.br\n".join(map(_usage, leaves)),
        ".SH DESCRIPTION",
        *_prose(root.help or ""),
        ".SH OPTIONS",
        *_options(context),
        ".SH COMMANDS",
    ]
    for each in below:
        lines += [f".SS {_usage(each)}", *_prose(each.command.help or ""), *_options(each)]
    lines.append(".SH EXIT STATUS")
    for code, meaning in sorted(EXIT_CODES.items()):
        lines += [".TP", f".B {code}", _escape(meaning)]
    return "\n".join(lines) + "\n"


def _below(context: click.Context) -> Iterator[click.Context]:
    """The contexts of the commands below a group, each before those below it."""
    if isinstance(context.command, click.Group):
        for name, command in context.command.commands.items():
            if not command.hidden:
                each = click.Context(command, context, name, **command.context_settings)
                yield each
                yield from _below(each)


def _usage(context: click.Context) -> str:
    """How a command is called, its name in bold."""
    pieces = " ".join(context.command.collect_usage_pieces(context))
    return f"\\fB{_escape(context.command_path)}\\fR {_escape(pieces)}"


def _options(context: click.Context) -> Iterator[str]:
    """What the help says of the options of a command; what is hidden has no record."""
    for parameter in context.command.get_params(context):
        record = parameter.get_help_record(context)
        if isinstance(parameter, click.Option) and record is not None:
            names, meaning = map(_escape, record)
            yield ".TP"
            yield _OPTION.sub(lambda option: f"\\fB{option[0]}\\fR", names)
            yield meaning or "\\&"


def _prose(text: str) -> Iterator[str]:
    """Paragraphs of help, the first of a section without a mark; those that click leaves as they stand
    (behind a line with a backspace) are examples."""
    for i, paragraph in enumerate(text.split("\n\n")):
        if i:
            yield ".PP"
        if paragraph.startswith("\b\n"):
            yield from (".nf", *map(_escape, paragraph[2:].splitlines()), ".fi")
        else:
            yield _escape(" ".join(paragraph.split()))


def _escape(text: str) -> str:
    """Text in which nothing is a command of roff."""
    text = text.replace("\\", "\\e").replace("-", "\\-")
    text = "".join(c if c.isascii() else f"\\[u{ord(c):04X}]" for c in text)
    return f"\\&{text}" if text[:1] in (".", "'") else text
