"""Every error that aiocodec raises on purpose.

    AicError                      1   anything else that went wrong inside
    ├── ImageError                3   the input is not an image that can be read
    ├── BitstreamError            4   the .aic file is corrupt or truncated
    ├── CompatibilityError        5   the file is fine, this installation cannot decode it
    │   ├── VersionError              a bitstream version or critical feature from the future
    │   ├── ModelError                weights that are missing, damaged, or not those of the file
    │   └── RuntimeMissing            PyTorch or another library cannot be loaded
    ├── LimitError                6   more pixels, bytes or memory than allowed
    ├── OutputError               7   the output exists or cannot be written
    │   └── BrokenPipe          141   whoever read the output has stopped; nothing is said of it
    ├── BatchError                8   some files of a batch failed, the others are done
    ├── TrainingError             9   training cannot go on; the last checkpoint is good
    │   └── Diverged                  the loss exploded or stopped being a number
    ├── ClusterError             10   a cluster cannot be reached or has failed; what was done is recorded
    └── CodecMissing              1   a codec to compare with is not installed; the others are done

The number is the exit code of `aic`; 0 is success and 2 is a usage error. Messages are one line and
name what is wrong; the command line puts the file's name in front.
"""

import os
import re


class AicError(Exception):
    """Base of all errors raised on purpose; `exit_code` is what `aic` exits with."""

    exit_code = 1


class ImageError(AicError):
    """The input is not an image that can be read."""

    exit_code = 3


class BitstreamError(AicError):
    """The .aic file is corrupt or truncated."""

    exit_code = 4


class CompatibilityError(AicError):
    """The file is intact, but this installation cannot decode it."""

    exit_code = 5


class VersionError(CompatibilityError):
    """The file has a bitstream version, flag or chunk that this version does not know."""


class ModelError(CompatibilityError):
    """Weights are missing or damaged, or are not the ones that the file was made with."""


class RuntimeMissing(CompatibilityError):
    """PyTorch, or another library that the work needs, is missing or cannot be loaded."""


class LimitError(AicError):
    """The file has more pixels or bytes, or needs more memory, than allowed."""

    exit_code = 6


class OutputError(AicError):
    """The output exists already or cannot be written."""

    exit_code = 7


class BrokenPipe(OutputError):
    """Whoever read the output has stopped reading, as `head` does. The exit code is what a shell has for
    a process that SIGPIPE ended."""

    exit_code = 141


class BatchError(AicError):
    """Some files of a batch failed; the others are done."""

    exit_code = 8


class TrainingError(AicError):
    """Training cannot start or go on; what its last checkpoint holds is good."""

    exit_code = 9


class Diverged(TrainingError):
    """The loss exploded or stopped being a number."""


class ClusterError(AicError):
    """A cluster cannot be reached or has failed; what was done is recorded, and the next run goes on."""

    exit_code = 10


class CodecMissing(AicError):
    """A codec to compare with that this installation lacks."""


_NO_MEMORY = (  # phrases of torch's messages, in lower case
    "allocate memory",  # "can't", "cannot" or "failed to": the CPU
    "not enough memory",  # the CPU, on Windows
    "out of memory",  # CUDA and other devices
    "tried to allocate",  # most of the above go on so
    "alloc_failed",  # cuBLAS and cuDNN
    "could not create a primitive",  # oneDNN, which does not say why; sizes that it refuses are not ours
)

_MISSING = {  # libraries that an installation may lack, and what to say then
    "torch": "PyTorch is not installed: pip install 'aiocodec[torch]', or torch itself, brings it",
    "ray": "Ray is not installed: pip install 'aiocodec[ray]' brings it",
    "pyarrow": "Ray Data is not installed: pip install 'aiocodec[ray]' brings it",
    "onnxruntime": "onnxruntime is not installed: pip install onnxruntime brings it",
}

_NO_SPACE = re.compile("cannot allocate|failed to map segment", re.IGNORECASE)  # of the loader


def out_of_memory(fault: BaseException) -> bool:
    """Whether an exception says that the memory of the machine or of a device is used up.

    MemoryError does (numpy's is one), and torch.OutOfMemoryError, which is known by its name here.
    Otherwise torch raises a plain RuntimeError, with one of a few phrases in its message; those that
    speak of memory in another way, an illegal access or a layout, are no lack of it.
    """
    if isinstance(fault, MemoryError):
        return True
    if any(base.__name__ == "OutOfMemoryError" for base in type(fault).__mro__):
        return True
    text = str(fault).lower()
    return isinstance(fault, RuntimeError) and any(phrase in text for phrase in _NO_MEMORY)


def as_aic_error(fault: Exception) -> AicError:
    """The error to report for any exception: itself, a lack of memory or of a library, or what should
    never happen, by its name. With AIC_DEBUG in the environment the last is raised as it is."""
    if isinstance(fault, AicError):
        return fault
    text = " ".join(str(fault).split())[:200]
    library = isinstance(fault, ImportError) or (isinstance(fault, OSError) and not fault.errno)
    if out_of_memory(fault) or (library and _NO_SPACE.search(text)):
        return LimitError("not enough memory")
    if isinstance(fault, ModuleNotFoundError) and fault.name in _MISSING:
        return RuntimeMissing(_MISSING[fault.name])
    if library:  # the loader's own errors have no number
        return RuntimeMissing(f"a library cannot be loaded: {text}")
    if os.environ.get("AIC_DEBUG"):
        raise fault
    return AicError(
        f"internal error: {type(fault).__name__}: {text} (AIC_DEBUG=1 shows the traceback)"
    )
