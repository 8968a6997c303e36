"""Photographs for training: a folder decoded once, random patches of it afterwards."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from aiocodec.errors import AicError, ImageError
from aiocodec.image import SUFFIXES, read


def load_folder(
    folder: Path, device: torch.device | str = "cpu", limit: int | None = None
) -> list[Tensor]:
    """The images of a folder in the order of their names, uint8 [3, H, W] on `device`.

    Raises ImageError where there are none; files that cannot be read are left out.
    """
    images = []
    for path in sorted(p for p in folder.glob("*") if p.suffix.lower() in SUFFIXES)[:limit]:
        try:
            rgb = read(path.read_bytes()).rgb
        except (AicError, OSError):
            continue
        images.append(torch.from_numpy(np.ascontiguousarray(rgb.transpose(2, 0, 1))).to(device))
    if not images:
        raise ImageError(f"no readable images in {folder}")
    return images


class Patches:
    """Random crops, flipped at random, each image drawn in proportion to its area."""

    def __init__(self, images: list[Tensor], seed: int = 0) -> None:
        self.images = images
        self.rng = np.random.default_rng(seed)
        areas = np.array([image.shape[1] * image.shape[2] for image in images], dtype=np.float64)
        self.shares = areas / areas.sum()

    def batch(self, count: int, size: int) -> Tensor:
        """float [count, 3, size, size] in 0..1; images smaller than `size` are never drawn, unless
        all are, which is an ImageError."""
        fits = np.array([min(image.shape[1:]) >= size for image in self.images])
        if not fits.any():
            raise ImageError(f"no training image is {size} pixels wide and high")
        shares = self.shares * fits
        patches = []
        for index in self.rng.choice(len(self.images), count, p=shares / shares.sum()):
            image = self.images[index]
            top = self.rng.integers(image.shape[1] - size + 1)
            left = self.rng.integers(image.shape[2] - size + 1)
            patch = image[:, top : top + size, left : left + size]
            flips = [axis for axis in (1, 2) if self.rng.random() < 0.5]
            patch = patch.flip(flips)
            patches.append(patch.transpose(1, 2) if self.rng.random() < 0.5 else patch)
        return torch.stack(patches).float() / 255
