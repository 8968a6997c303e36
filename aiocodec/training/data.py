"""Photographs for training: a folder decoded once onto the device, random patches of it afterwards."""

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from aiocodec.errors import AicError, ImageError, LimitError
from aiocodec.image import SUFFIXES, read


def out_of_memory(fault: BaseException) -> bool:
    """Whether an exception says that the memory of some device is used up."""
    names = ("OutOfMemoryError", "MemoryError")
    return type(fault).__name__ in names or "can't allocate memory" in str(fault)


@dataclass(frozen=True)
class Photographs:
    """Decoded images on one device, all their bytes in one row, so that one gather takes a batch of
    patches from anywhere."""

    pixels: Tensor  # uint8, the images one after the other, each as [3, H, W]
    starts: Tensor  # int64 [K], where each begins in `pixels`
    sides: Tensor  # int64 [K, 2], H and W of each
    largest: int  # side of the largest square that one of them holds
    unreadable: tuple[str, ...] = ()  # names of files that were left out

    @classmethod
    def load(
        cls, folder: Path, device: torch.device | str = "cpu", limit: int | None = None
    ) -> "Photographs":
        """The images of a folder in the order of their names, the first `limit` of them; files that
        cannot be read are left out.

        Raises ImageError where there are none, LimitError where they do not fit into memory.
        """
        paths = sorted(p for p in folder.glob("*") if p.suffix.lower() in SUFFIXES)[:limit]
        images, unreadable = [], []
        try:
            with ThreadPoolExecutor(os.cpu_count()) as pool:
                for path, rgb in zip(paths, pool.map(_decode, paths), strict=True):
                    if rgb is None:
                        unreadable.append(path.name)
                    else:
                        images.append(torch.from_numpy(rgb))
            if not images:
                found = f"none of its {len(paths)} images can be read" if paths else "no images"
                raise ImageError(f"{folder}: {found}")
            sides = torch.tensor([image.shape[1:] for image in images])
            starts = torch.tensor([0] + [image.numel() for image in images]).cumsum(0)
            pixels = torch.empty(int(starts[-1]), dtype=torch.uint8)
            for start, image in zip(starts.tolist(), images, strict=False):
                pixels[start : start + image.numel()] = image.flatten()
            return cls(
                pixels.to(device),
                starts[:-1].to(device),
                sides.to(device),
                int(sides.amin(1).max()),
                tuple(unreadable),
            )
        except (MemoryError, RuntimeError) as fault:
            if not out_of_memory(fault):
                raise
            raise LimitError(f"the images of {folder} do not fit into the memory") from None

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, index: int) -> Tensor:
        """One image, uint8 [3, H, W]; IndexError beyond the last."""
        start, (height, width) = int(self.starts[index]), self.sides[index].tolist()
        return self.pixels[start : start + 3 * height * width].view(3, height, width)

    @property
    def megapixels(self) -> float:
        return self.pixels.numel() / 3e6

    def batch(self, count: int, side: int, rng: torch.Generator) -> Tensor:
        """float [count, 3, side, side] in 0..1: random crops, mirrored and transposed at random, from
        images in proportion to their area. `rng` is of the images' device.

        Images smaller than `side` are never drawn; ImageError where all are.
        """
        device = self.pixels.device
        if side > self.largest:
            raise ImageError(f"no training image is {side} pixels wide and high")
        fits = (self.sides >= side).all(1)
        shares = (self.sides.prod(1) * fits).double()
        chosen = torch.multinomial(shares, count, replacement=True, generator=rng)
        corner, flips = torch.rand(2, count, 3, generator=rng, device=device)
        height, width = self.sides[chosen].T
        top = (corner[:, 0] * (height - side + 1)).long()
        left = (corner[:, 1] * (width - side + 1)).long()

        steps = torch.arange(side, device=device).expand(count, side)
        mirrored = flips[:, :2, None] < 0.5
        rows = torch.where(mirrored[:, 0], side - 1 - steps, steps) + top[:, None]
        columns = torch.where(mirrored[:, 1], side - 1 - steps, steps) + left[:, None]
        place = rows[:, :, None] * width[:, None, None] + columns[:, None, :]
        place = torch.where(flips[:, 2, None, None] < 0.5, place, place.mT)
        planes = (
            torch.arange(3, device=device)[:, None, None] * (height * width)[:, None, None, None]
        )
        at = self.starts[chosen][:, None, None, None] + planes + place[:, None]
        return self.pixels[at].float() / 255


def _decode(path: Path) -> np.ndarray | None:
    try:
        return np.ascontiguousarray(read(path.read_bytes()).rgb.transpose(2, 0, 1))
    except (AicError, OSError):
        return None
