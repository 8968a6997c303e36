"""What counts as too little memory, whoever says it."""

import numpy as np
import pytest
import torch

from aiocodec.errors import out_of_memory


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
