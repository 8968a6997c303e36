"""What the commands have in common: exit codes, and options that several of them take."""

import functools
import re
from collections.abc import Callable
from contextlib import suppress
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import click
from click.shell_completion import CompletionItem

from aiocodec import signals
from aiocodec.config import DECODED_MAX_PIXELS, DEFAULT_MAX_PIXELS
from aiocodec.errors import BrokenPipe, ModelError
from aiocodec.loading import loading
from aiocodec.pretrained import Manifest

EXIT_CODES = {
    0: "done",
    1: "internal error",
    2: "wrong usage",
    3: "an image that cannot be read",
    4: "an .aic file that is corrupt, truncated or cannot be read",
    5: "an .aic file of an unsupported version or another model, no weights, or a library is missing",
    6: "a limit is exceeded: pixels, memory or file size",
    7: "the output exists or cannot be written",
    8: "some files of a batch failed, the others are done",
    9: "training cannot go on, its last checkpoint is good",
    10: "a cluster cannot be reached or has failed, what was done is recorded",
    **signals.MEANING,
    BrokenPipe.exit_code: "whoever read the output has stopped; nothing is said",
}
EPILOG = "\b\nExit codes:\n" + "\n".join(
    f"{code:5}  {text}" for code, text in sorted(EXIT_CODES.items())
)

STRIPS = ("all", "private")
FOLDER = click.Path(exists=True, file_okay=False, path_type=Path)


class FileName(click.Path):
    """A path, as it stands: shells complete it, and the work itself says what is wrong with the file, with
    an exit code for that."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """The same path."""
        return str(value)


FILE_NAME = FileName()
FOLDER_NAME = FileName(file_okay=False)


class Size(click.ParamType):  # type: ignore[type-arg] # it takes none before click 8.5
    """A number of bytes, at least 1, with a unit or none, as in the GNU coreutils: kB (or KB), MB and GB are
    powers of 1000; KiB, MiB and GiB are powers of 1024, and so are K, M and G alone. There may be a
    fraction; what it leaves of a byte does not count."""

    name = "size"
    _POWERS = "KMG"
    _FORM = re.compile(r"([0-9]{1,15}(?:\.[0-9]{0,15})?)(?:B|([KMG])(iB|B|))?")

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """The number of bytes."""
        found = self._FORM.fullmatch(re.sub("[kmg]", lambda unit: unit[0].upper(), str(value)))
        if found is None:
            self.fail(f"{value!r} is no size, as 40000, 40kB or 1.5MiB are", param, ctx)
        number, unit, rest = found.groups()
        base = 1000 if rest == "B" else 1024
        size = int(Fraction(number) * base ** (self._POWERS.index(unit) + 1 if unit else 0))
        if size < 1:
            self.fail(f"{value!r} is less than a byte", param, ctx)
        return size


SIZE = Size()


class InstalledModel(click.ParamType):  # type: ignore[type-arg] # it takes none before click 8.5
    """The name of a model that there are weights for. Where there are none at all, or their manifest is
    damaged, any name passes: the work itself says so, with an exit code for that."""

    name = "model"

    def names(self) -> list[str]:
        """The models that can be used, the default first."""
        with suppress(ModelError):
            return Manifest.read().models
        return []

    def get_metavar(self, param: click.Parameter, ctx: click.Context | None = None) -> str:
        """As that of a click.Choice."""
        return f"[{'|'.join(self.names())}]"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """The same name."""
        names = self.names()
        if names and value not in names:
            self.fail(f"there are no weights of {value!r}, only of {', '.join(names)}", param, ctx)
        return str(value)

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        """The models that begin so."""
        return [CompletionItem(name) for name in self.names() if name.startswith(incomplete)]


MODEL = InstalledModel()


class Optional(click.Command):
    """A command with options that need no value: the next argument is the value only where it looks like
    one, and a file of such a name is ./all, for example."""

    ALONE = {  # what is a value of an option, and which one it has without
        "--strip": (re.compile("|".join(STRIPS)), "all"),
        "--ray": (re.compile(r"auto|local|\S+://\S+|[^\s/]+:\d+"), ""),
    }

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        end = args.index("--") if "--" in args else len(args)
        known = []
        for arg, following in pairwise([*args[:end], ""]):
            value, default = self.ALONE.get(arg, (None, ""))
            alone = value is not None and not value.fullmatch(following)
            known.append(f"{arg}={default}" if alone else arg)
        return super().parse_args(ctx, known + args[end:])


def grouped(*options: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Several options as one decorator, in their order."""
    return lambda command: functools.reduce(lambda f, option: option(f), reversed(options), command)


def existing_device(ctx: click.Context, param: click.Parameter, device: str) -> str:
    """A callback that refuses a CUDA device that is not there; only where one is asked for here, and not on
    the machines of a cluster, is PyTorch imported for that."""
    if device == "cuda" and ctx.params.get("ray") is None:
        with loading("torch"):
            import torch
        if not torch.cuda.is_available():
            raise click.BadParameter("no CUDA device is available", ctx, param)
    return device


model_option = click.option(
    "--model", type=MODEL, help="Transforms to use; by default the best that fits."
)
device_option = click.option(
    "--device",
    type=click.Choice(["auto", "cpu", "cuda"]),
    default="auto",
    show_default=True,
    callback=existing_device,
    help="Where to compute; auto is cuda where there is one.",
)
threads_option = click.option(
    "--threads", type=click.IntRange(1), help="CPU threads; by default all cores."
)
coding_options = grouped(
    click.option(
        "-o",
        "--output",
        type=FILE_NAME,
        metavar="OUT",
        help="The output of a single input, instead of a second argument.",
    ),
    click.option(
        "--out-dir",
        type=FOLDER_NAME,
        metavar="DIR",
        help="Write every output into this folder; allows several inputs.",
    ),
    click.option(
        "-r", "--recursive", is_flag=True, help="Take the files in folders; DIR gets the same tree."
    ),
    click.option(
        "-j",
        "--jobs",
        type=click.IntRange(1),
        metavar="N",
        help="Work on N files at once, with one thread each (see --threads).  [default with --ray: as many "
        "as there are CPUs]",
    ),
    click.option("-f", "--force", is_flag=True, help="Overwrite existing outputs."),
    click.option("--skip-existing", is_flag=True, help="Leave out what has an output already."),
    click.option(
        "--files-from",
        type=FILE_NAME,
        metavar="FILE",
        help='Take inputs from the lines of FILE too, or of stdin for "-".',
    ),
    click.option(
        "--ray",
        is_eager=True,
        metavar="[ADDRESS]",
        help="Distribute with Ray: IN and DIR may be URLs (s3://...), folders are walked, and a manifest in "
        "DIR says what is done. ADDRESS is HOST:PORT, auto for the cluster that this machine is of, or "
        "local; by default $RAY_ADDRESS or local.",
    ),
    click.option(
        "--retry", is_flag=True, help="With --ray: do again what the manifest has as failed."
    ),
    model_option,
    device_option,
    click.option(
        "--threads",
        type=click.IntRange(1),
        help="CPU threads; by default all cores, with --jobs one.",
    ),
    click.option(
        "--max-pixels",
        type=click.IntRange(1),
        help="Refuse larger pictures."
        f"  [default: {DEFAULT_MAX_PIXELS} to encode, {DECODED_MAX_PIXELS} to decode]",
    ),
    click.option("--json", "as_json", is_flag=True, help="Report one JSON object per file."),
    click.option("--quiet", is_flag=True, help="Report errors only."),
    click.option("--verbose", is_flag=True, help="Report model and device too."),
)
