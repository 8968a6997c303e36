"""Photographs and pairs for training: folders decoded once onto the device, random patches then."""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from aiocodec.errors import AicError, ImageError, LimitError, out_of_memory
from aiocodec.image import SUFFIXES, read


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
        for path, rgb in zip(paths, _decode_all(paths), strict=True):
            if rgb is None:
                unreadable.append(path.name)
            else:
                images.append(rgb)
        if not images:
            found = f"none of its {len(paths)} images can be read" if paths else "no images"
            raise ImageError(f"{folder}: {found}")
        return cls.pack(images, folder, device, tuple(unreadable))

    @classmethod
    def pack(
        cls,
        images: Sequence[np.ndarray],
        folder: Path,
        device: torch.device | str = "cpu",
        unreadable: tuple[str, ...] = (),
    ) -> "Photographs":
        """The images uint8 [3, H, W] of a folder, of any sizes; LimitError, which names it, where they
        do not fit into memory."""
        try:
            sides = torch.tensor([image.shape[1:] for image in images])
            starts = torch.tensor([0] + [image.size for image in images]).cumsum(0)
            pixels = torch.empty(int(starts[-1]), dtype=torch.uint8)
            for start, image in zip(starts.tolist(), images, strict=False):
                pixels[start : start + image.size] = torch.from_numpy(image.reshape(-1))
            return cls(
                pixels.to(device),
                starts[:-1].to(device),
                sides.to(device),
                int(sides.amin(1).max()),
                unreadable,
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
        """float [count, 3, side, side] in 0..1: random crops, mirrored and transposed at random,
        from images in proportion to their area. `rng` is of the images' device.

        Images smaller than `side` are never drawn; ImageError where all are.
        """
        return self.take(self.places(count, side, rng))

    def take(self, places: Tensor) -> Tensor:
        """The pixels at `places`, float in 0..1."""
        return self.pixels[places].float() / 255

    def places(self, count: int, side: int, rng: torch.Generator) -> Tensor:
        """Where the pixels of a `batch` lie in `pixels`, int64 [count, 3, side, side]."""
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
        return self.starts[chosen][:, None, None, None] + planes + place[:, None]


HELD_OUT = (10, 10)  # of pairs in the order of their names: every tenth run of ten


@dataclass(frozen=True)
class Pairs:
    """Spoiled photographs and the same ones clean, from folders of `NAME_in.*` and `NAME_gt.*`."""

    spoiled: Photographs
    clean: Photographs  # of the same sides in the same order
    names: tuple[str, ...]
    left_out: tuple[str, ...] = ()  # why, for every pair that cannot be used

    @classmethod
    def load(
        cls, folder: Path, device: torch.device | str = "cpu", held_out: bool = False
    ) -> "Pairs":
        """The pairs of a folder for training or, with `held_out`, those that training does not see:
        of the names in their order every tenth run of ten, so that scenes taken one after the other
        are seldom on both sides.

        Raises ImageError where there are none, LimitError where they do not fit into memory.
        """
        inputs = sorted(p for p in folder.glob("*_in.*") if p.suffix.lower() in SUFFIXES)
        length, period = HELD_OUT
        inputs = [
            path
            for i, path in enumerate(inputs)
            if (i // length % period == period - 1) == held_out
        ]
        targets = [p.with_name(p.name.replace("_in.", "_gt.")) for p in inputs]
        pictures = _decode_all(inputs + targets)
        good, left_out = [], []
        for path, spoiled, clean in zip(
            inputs, pictures[: len(inputs)], pictures[len(inputs) :], strict=True
        ):
            name = path.name.split("_in.")[0]
            if spoiled is None or clean is None:
                left_out.append(f"{name}: one of the two cannot be read")
            elif spoiled.shape != clean.shape:
                left_out.append(f"{name}: the two differ in size")
            else:
                good.append((name, spoiled, clean))
        if not good:
            raise ImageError(f"{folder}: no pairs NAME_in, NAME_gt that can be used")
        names, spoiled_rgb, clean_rgb = zip(*good, strict=True)
        return cls(
            Photographs.pack(spoiled_rgb, folder, device),
            Photographs.pack(clean_rgb, folder, device),
            names,
            tuple(left_out),
        )

    def __len__(self) -> int:
        return len(self.names)

    def batch(self, count: int, side: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """Spoiled and clean patches of the same places, as `Photographs.batch` draws them."""
        places = self.clean.places(count, side, rng)
        return self.spoiled.take(places), self.clean.take(places)


def _decode_all(paths: list[Path]) -> list[np.ndarray | None]:
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(_decode, paths))


def _decode(path: Path) -> np.ndarray | None:
    try:
        return np.ascontiguousarray(read(path.read_bytes()).rgb.transpose(2, 0, 1))
    except (AicError, OSError):
        return None
