"""What SIGINT, SIGTERM and SIGHUP do: the command ends soon, with 128 + the number of the signal, and
leaves nothing half done.

The first signal raises Stopped where the program is, or at the end of a block that is `held`. The
second ends the process at once; what was begun in a block of `undoing` is undone all the same. A
signal that was ignored when the process started, as under nohup, stays ignored.

Nothing but a little of the standard library is imported: handlers stand before anything else loads.
"""

import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress

TYPE_CHECKING = False  # as in typing, which takes longer to import than all the rest
if TYPE_CHECKING:
    from typing import Any, NoReturn

SIGNALS = tuple(
    number
    for name in ("SIGINT", "SIGTERM", "SIGHUP")
    if (number := getattr(signal, name, None)) is not None
)
MEANING = {129: "hung up", 130: "interrupted", 143: "terminated"}  # of the exit codes


class Stopped(SystemExit):
    """A signal came; the code is the exit code. No `except Exception` on the way holds it up, and
    wherever it ends there is no traceback."""

    code: int


_first = 0  # the exit code of the signal that came first, 0 before
_waiting = False  # it came in a block that is held and has still to be raised
_again = False  # the second came in one that is held firmly
_holds = 0  # blocks that are held now, one within the other
_firm = 0  # those of them that are held firmly
_begun: set["undoing"] = set()
_previous_hook = sys.unraisablehook


def install() -> None:
    """Set the handlers, in the main thread, for the signals that are not ignored."""
    global _first, _waiting, _again, _holds, _firm, _previous_hook
    _first, _waiting, _again, _holds, _firm = 0, False, False, 0, 0
    for number in SIGNALS:
        if signal.getsignal(number) not in (signal.SIG_IGN, None):  # None: set by other than Python
            signal.signal(number, _handle)
    if sys.unraisablehook is not _unraisable:
        _previous_hook, sys.unraisablehook = sys.unraisablehook, _unraisable


def ignore() -> None:
    """From now on signals do nothing: the command is over, only the interpreter has still to end."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def undo() -> None:
    """Undo what blocks of `undoing` that a signal kept from ending have begun."""
    while _begun:
        _begun.pop().call()


def leave(code: int, *, say: bool = False) -> "NoReturn":
    """End the process here and now, with one line on stderr if `say`; what was begun is undone."""
    try:
        undo()
        if say:
            os.write(2, f"aic: {MEANING[code]}\n".encode())
    except OSError:  # a closed stderr
        pass
    finally:
        os._exit(code)


class held:
    """A block in which the first signal waits for the end of the block, and is raised there; the
    second waits too if `firmly`, which is for what takes no time.

    For what an exception in the middle would break: the import of PyTorch or NumPy aborts the
    process, or fails in the next attempt.
    """

    def __init__(self, *, firmly: bool = False) -> None:
        self._firmly = firmly

    def __enter__(self) -> None:
        global _holds, _firm
        _holds += 1
        _firm += self._firmly

    def __exit__(self, *error: object) -> None:
        global _holds, _firm, _waiting
        _holds -= 1
        _firm -= self._firmly
        if _again and not _firm:
            leave(_first)
        if _waiting and not _holds:
            _waiting = False
            raise Stopped(_first)


class undoing:
    """A block at whose end `action` is called, and before the process ends, however it ends in that
    block. It may be called twice, and its OSError means that there is nothing to be undone."""

    def __init__(self, action: Callable[[], object]) -> None:
        self._action = action

    def call(self) -> None:
        """Undo it."""
        with suppress(OSError):
            self._action()

    def __enter__(self) -> None:
        _begun.add(self)

    def __exit__(self, *error: object) -> None:
        self.call()
        _begun.discard(self)


def _handle(number: int, frame: object) -> None:
    """The handler."""
    global _first, _waiting, _again
    if _first:
        _again = True
        if not _firm:
            leave(_first)
        return
    _first = 128 + number
    if _holds:
        _waiting = True
    else:
        raise Stopped(_first)


def _unraisable(fault: "Any") -> None:
    """Where Python can but print an exception, in a finaliser for example, Stopped would be lost."""
    if isinstance(fault.exc_value, Stopped):
        leave(fault.exc_value.code, say=True)
    _previous_hook(fault)
