"""What counts as too little memory, whoever says it."""

import numpy as np
import pytest
import torch

from aiocodec.errors import (
    AicError,
    LimitError,
    ModelError,
    RuntimeMissing,
    as_aic_error,
    out_of_memory,
)


@pytest.mark.parametrize("allocate", [torch.empty, np.empty])
def test_an_allocation_that_really_fails(allocate):
    with pytest.raises((RuntimeError, MemoryError)) as caught:
        allocate(1 << 50)
    assert out_of_memory(caught.value)


@pytest.mark.parametrize(
    "fault",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA ran out"),
        RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 8 bytes."),
        RuntimeError("CUDA error: out of memory"),
        RuntimeError("MPS backend out of memory (MPS allocated: 1.00 GB)"),
        RuntimeError("could not create a primitive"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    ],
)
def test_too_little_memory(fault):
    assert out_of_memory(fault)


@pytest.mark.parametrize(
    "fault",
    [
        RuntimeError("CUDA error: an illegal memory access was encountered"),
        RuntimeError("unsupported memory format option Preserve"),
        RuntimeError("Trying to resize storage that is not allocated"),
        RuntimeError("mat1 and mat2 shapes cannot be multiplied"),
        ValueError("cannot allocate memory"),
        KeyboardInterrupt(),
    ],
)
def test_anything_else(fault):
    assert not out_of_memory(fault)


@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        (ModelError("as it is"), ModelError),
        (MemoryError(), LimitError),
        (ImportError("libtorch_cpu.so: failed to map segment from shared object"), LimitError),
        (OSError("libgomp.so.1: cannot open shared object file: No such file"), RuntimeMissing),
        (ModuleNotFoundError("No module named 'torch'"), RuntimeMissing),
        (OSError(28, "No space left on device"), AicError),
        (ZeroDivisionError("of course\nnever"), AicError),
    ],
)
def test_every_exception_has_an_error_of_one_line(fault, kind, monkeypatch):
    monkeypatch.delenv("AIC_DEBUG", raising=False)
    error = as_aic_error(fault)
    assert type(error) is kind and "\n" not in str(error)
    assert error is fault or not isinstance(fault, AicError)
    if kind is AicError:
        monkeypatch.setenv("AIC_DEBUG", "1")
        with pytest.raises(type(fault)):
            as_aic_error(fault)
