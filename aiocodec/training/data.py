"""What a run is shown: folders decoded once onto the device, random patches from then on.

    clean, spoiled = mixture.batch(count, side, rng)

Most patches are of clean photographs, spoiled by `degrade`, with haze by a predicted depth where there
is one; some are of clean scenes whose depth was measured, made hazy anew each time; some are of pairs,
real or rendered by others, spoiled already.
"""

import os
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from aiocodec.degrade import degrade, faded, on_top, rehaze
from aiocodec.errors import AicError, ImageError, LimitError, out_of_memory
from aiocodec.image import SUFFIXES, read
from aiocodec.training.config import TrainConfig

LOG_RANGE = (0.7, 3.5)  # of predicted depth: log of the farthest over the nearest, drawn per patch
HELD_OUT = 10  # every tenth run of ten pairs, in the order of their names, is not trained on


@dataclass(frozen=True)
class Crops:
    """Random squares, each in one of K images."""

    images: Tensor  # int64 [B]
    rows: Tensor  # int64 [B, side], of the image, from top to bottom or mirrored
    columns: Tensor  # int64 [B, side]
    transposed: Tensor  # bool [B]

    def at(self, starts: Tensor, widths: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
        """Where elements lie in a row of planes that begin at `starts` and are `widths` wide, both [B]:
        int64 [B, side, side]; `rows` and `columns` are those of the crop or of a coarser plane."""
        place = rows[:, :, None] * widths[:, None, None] + columns[:, None, :]
        return starts[:, None, None] + self.turned(place.mT, place)

    def turned(self, transposed: Tensor, upright: Tensor) -> Tensor:
        """The one for the crops that are transposed, the other for the rest, [B, side, side]."""
        return torch.where(self.transposed[:, None, None], transposed, upright)


@dataclass(frozen=True)
class Depths:
    """The depths of K images, as maps that may be much coarser, all in one row."""

    values: Tensor  # uint8, 255 the farthest
    starts: Tensor  # int64 [K], where each begins in `values`
    sides: Tensor  # int64 [K, 2], H and W of each map; 0 where the depth is not known
    measured: (
        bool  # values are proportional to the distance; else to its logarithm, of unknown range
    )

    def take(self, crops: Crops, sides: Tensor, rng: torch.Generator) -> Tensor:
        """Distance relative to the farthest thing in the image, in 0..1, float [B, 1, side, side],
        interpolated; NaN where it is not known. `sides` are those of all images, [K, 2]."""
        maps, images = self.sides[crops.images], sides[crops.images]

        def neighbours(places: Tensor, axis: int) -> tuple[Tensor, Tensor, Tensor]:
            size = maps[:, axis, None]
            at = (places + 0.5) * size / images[:, axis, None] - 0.5
            at = torch.minimum(at.clamp(min=0), (size - 1).clamp(min=0))
            low = at.long()
            return low, torch.minimum(low + 1, (size - 1).clamp(min=0)), at - low

        top, bottom, down = neighbours(crops.rows, 0)
        left, right, across = neighbours(crops.columns, 1)
        starts = self.starts[crops.images].clamp(max=len(self.values) - 1)

        def value(rows: Tensor, columns: Tensor) -> Tensor:
            return self.values[crops.at(starts, maps[:, 1], rows, columns)].float() / 255

        down = crops.turned(down[:, None, :], down[:, :, None])
        across = crops.turned(across[:, :, None], across[:, None, :])
        upper = torch.lerp(value(top, left), value(top, right), across)
        lower = torch.lerp(value(bottom, left), value(bottom, right), across)
        depth = torch.lerp(upper, lower, down)[:, None]
        if not self.measured:
            low, high = LOG_RANGE
            chance = torch.rand(len(depth), 1, 1, 1, generator=rng, device=depth.device)
            depth = torch.exp((low + (high - low) * chance) * (depth - 1))
        return depth.masked_fill((maps[:, 0] == 0)[:, None, None, None], float("nan"))


@dataclass(frozen=True)
class Photographs:
    """Decoded images on one device, all their bytes in one row, so that one gather takes a batch of
    patches from anywhere."""

    pixels: Tensor  # uint8, the images one after the other, each as [3, H, W]
    starts: Tensor  # int64 [K], where each begins in `pixels`
    sides: Tensor  # int64 [K, 2], H and W of each
    largest: int  # side of the largest square that one of them holds
    depths: Depths | None = None
    left_out: tuple[str, ...] = ()  # files that were left out: names, and why

    @classmethod
    def load(
        cls,
        folder: Path,
        device: torch.device | str = "cpu",
        limit: int | None = None,
        depths: Path | None = None,
    ) -> "Photographs":
        """The images of a folder in the order of their names, the first `limit` of them; files that
        cannot be read are left out. In the folder `depths` NAME.png is the predicted depth of the
        photograph NAME, in proportion to the logarithm of the distance; not all need one.

        Raises ImageError where there are none, LimitError where they do not fit into memory.
        """
        paths = sorted(p for p in folder.glob("*") if p.suffix.lower() in SUFFIXES)[:limit]
        images, left_out = _decode_all(paths)
        if not images:
            found = f"none of its {len(paths)} images can be read" if paths else "no images"
            raise ImageError(f"{folder}: {found}")
        maps = None
        if depths is not None:
            places = [depths / f"{path.stem}.png" for path in images]
            known, unusable = _decode_all([place for place in places if place.exists()])
            left_out += unusable
            if not known:
                raise ImageError(f"{depths}: no depths of the photographs in {folder}")
            maps = {path: known.get(place) for path, place in zip(images, places, strict=True)}
        return cls.pack(images, folder, device, maps, False, tuple(left_out))

    @classmethod
    def load_scenes(
        cls,
        folder: Path,
        depths: Path,
        device: torch.device | str = "cpu",
        without: Collection[str] = (),
    ) -> "Photographs":
        """The clean pictures NAME_gt.* or NAME_rgb.* of a folder whose depth was measured: in the folder
        `depths` it is NAME_depth.png, in proportion to the distance. Names of `without`, and those
        without a depth, are left out. Errors as for `load`."""
        paths = sorted(
            path
            for path in folder.glob("*")
            if path.suffix.lower() in SUFFIXES
            and path.stem.endswith(("_gt", "_rgb"))
            and _name(path) not in without
            and (depths / f"{_name(path)}_depth.png").exists()
        )
        images, left_out = _decode_all(paths)
        maps, unusable = _decode_all([depths / f"{_name(path)}_depth.png" for path in images])
        found = {path: maps.get(depths / f"{_name(path)}_depth.png") for path in images}
        images = {path: image for path, image in images.items() if found[path] is not None}
        if not images:
            raise ImageError(f"{folder}: no pictures NAME_gt or NAME_rgb with a depth in {depths}")
        return cls.pack(images, folder, device, found, True, tuple(left_out + unusable))

    @classmethod
    def pack(
        cls,
        images: Mapping[Path, np.ndarray],
        folder: Path,
        device: torch.device | str = "cpu",
        depths: Mapping[Path, np.ndarray | None] | None = None,
        measured: bool = False,
        left_out: tuple[str, ...] = (),
    ) -> "Photographs":
        """The images uint8 [3, H, W] of a folder, of any sizes, with depths [3, h, w] of some;
        LimitError, which names the folder, where they do not fit into memory."""
        try:
            pixels, starts, sides = _in_a_row(list(images.values()), device)
            maps = None
            if depths is not None:
                empty = np.empty((0, 0), np.uint8)
                known = [depths[path] for path in images]
                planes = [empty if plane is None else plane[0] for plane in known]
                maps = Depths(*_in_a_row(planes, device), measured)
            return cls(pixels, starts, sides, int(sides.amin(1).max()), maps, left_out)
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

    def batch(self, count: int, side: int, rng: torch.Generator) -> tuple[Tensor, Tensor | None]:
        """Patches float [count, 3, side, side] in 0..1, and their depth (see `Depths.take`) where some
        is known: random crops, mirrored and transposed at random, from images in proportion to their
        area. `rng` is of the images' device.

        Images smaller than `side` are never drawn; ImageError where all are.
        """
        crops = self.crops(count, side, rng)
        depth = None if self.depths is None else self.depths.take(crops, self.sides, rng)
        return self.take(crops), depth

    def take(self, crops: Crops) -> Tensor:
        """The pixels of crops, float [B, 3, side, side] in 0..1."""
        height, width = self.sides[crops.images].T
        place = crops.at(self.starts[crops.images], width, crops.rows, crops.columns)
        planes = torch.arange(3, device=place.device) * (height * width)[:, None]
        return self.pixels[place[:, None] + planes[:, :, None, None]].float() / 255

    def crops(self, count: int, side: int, rng: torch.Generator) -> Crops:
        """The places of a `batch`."""
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
        return Crops(chosen, rows, columns, flips[:, 2] >= 0.5)


@dataclass(frozen=True)
class Pairs:
    """Spoiled photographs and the same ones clean, from folders of `NAME_in.*` and `NAME_gt.*`."""

    spoiled: Photographs
    clean: Photographs  # of the same sides in the same order
    names: tuple[str, ...]
    left_out: tuple[str, ...] = ()  # why, for every pair that cannot be used

    @classmethod
    def load(
        cls, folder: Path, device: torch.device | str = "cpu", unseen: bool = False
    ) -> "Pairs":
        """The pairs of a folder for training or, with `unseen`, those that are `held_out`. Pairs of
        different sizes are left out.

        Raises ImageError where there are none, LimitError where they do not fit into memory.
        """
        held = held_out(folder)
        inputs = [path for path in _inputs(folder) if (_name(path) in held) == unseen]
        targets = [path.with_name(path.name.replace("_in.", "_gt.")) for path in inputs]
        pictures, _ = _decode_all([*inputs, *targets])
        spoiled, clean, left_out = {}, {}, []
        for path, target in zip(inputs, targets, strict=True):
            x, y = pictures.get(path), pictures.get(target)
            if x is None or y is None:
                left_out.append(f"{_name(path)}: one of the two cannot be read")
            elif x.shape != y.shape:
                left_out.append(f"{_name(path)}: the two differ in size")
            else:
                spoiled[path], clean[path] = x, y
        if not spoiled:
            raise ImageError(f"{folder}: no pairs NAME_in, NAME_gt that can be used")
        return cls(
            Photographs.pack(spoiled, folder, device),
            Photographs.pack(clean, folder, device),
            tuple(map(_name, spoiled)),
            tuple(left_out),
        )

    def __len__(self) -> int:
        return len(self.names)

    def batch(self, count: int, side: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """Clean and spoiled patches of the same places, as `Photographs.batch` draws them."""
        crops = self.clean.crops(count, side, rng)
        return self.clean.take(crops), self.spoiled.take(crops)


def held_out(folder: Path) -> frozenset[str]:
    """The names of the pairs of a folder that training does not see: in their order every tenth run of
    ten, so that scenes taken one after the other are seldom on both sides; of fewer than a hundred
    pairs shorter runs, of fewer than ten none."""
    names = [_name(path) for path in _inputs(folder)]
    length = max(1, min(HELD_OUT, len(names) // HELD_OUT))
    return frozenset(name for i, name in enumerate(names) if i // length % HELD_OUT == HELD_OUT - 1)


@dataclass(frozen=True)
class Mixture:
    """All that a run is shown."""

    photographs: Photographs
    scenes: tuple[Photographs, ...] = ()  # with measured depths
    pairs: tuple[Pairs, ...] = ()

    @classmethod
    def load(
        cls,
        photographs: Path,
        device: torch.device | str = "cpu",
        depths: Path | None = None,
        scenes: Sequence[tuple[Path, Path]] = (),
        pairs: Sequence[Path] = (),
    ) -> "Mixture":
        """Photographs and their predicted `depths`, scenes and their measured ones, pairs; see
        `Photographs.load`, `Photographs.load_scenes` and `Pairs.load`, also for what they raise. Scenes
        that are those of pairs held out are left out."""
        held = {folder.resolve(): held_out(folder) for folder in pairs}
        return cls(
            Photographs.load(photographs, device, depths=depths),
            tuple(
                Photographs.load_scenes(folder, maps, device, held.get(folder.resolve(), ()))
                for folder, maps in scenes
            ),
            tuple(Pairs.load(folder, device) for folder in pairs),
        )

    @property
    def left_out(self) -> tuple[str, ...]:
        """Files and pairs that could not be used, and why."""
        sources: tuple[Photographs | Pairs, ...] = (self.photographs, *self.scenes, *self.pairs)
        return tuple(why for source in sources for why in source.left_out)

    def batch(
        self, count: int, side: int, rng: torch.Generator, config: TrainConfig
    ) -> tuple[Tensor, Tensor]:
        """Clean patches float [count, 3, side, side] in 0..1, channels last, and the same ones spoiled:
        of each kind of source its share of the config, on average, but at least one photograph. Sources
        whose pictures are all smaller than `side` give none."""
        scenes = [source for source in self.scenes if source.largest >= side]
        pairs = [source for source in self.pairs if source.clean.largest >= side]
        parts: list[tuple[Tensor, Tensor]] = []
        left = count - 1
        sources: list[tuple[Photographs | Pairs, float]] = [
            *((source, config.scenes / len(scenes)) for source in scenes),
            *((source, config.pairs / len(pairs)) for source in pairs),
        ]
        chances = torch.rand(len(sources), generator=rng, device=rng.device).tolist()
        for (source, share), chance in zip(sources, chances, strict=True):
            given = min(left, int(share * count + chance))
            left -= given
            if not given:
                continue
            if isinstance(source, Pairs):
                clean, spoiled = source.batch(given, side, rng)
                parts.append((clean, on_top(spoiled, rng)))
            else:
                clean, depth = source.batch(given, side, rng)
                assert depth is not None
                parts.append((clean, rehaze(clean, depth, rng)))
        clean, depth = self.photographs.batch(left + 1, side, rng)
        spoiled = degrade(clean, rng, config.clean, depth)
        # Not what is made hazy: to restore a lifted black would be to leave some of the haze.
        stays = (spoiled == clean).flatten(1).all(1)[:, None, None, None]
        toned = faded(clean, rng, config.faded)
        parts.append((torch.where(stays, toned, clean), torch.where(stays, toned, spoiled)))
        clean, spoiled = (
            torch.cat(part).contiguous(memory_format=torch.channels_last)
            for part in zip(*parts, strict=True)
        )
        return clean, spoiled

    def batches(
        self, count: int, side: int, rng: torch.Generator, config: TrainConfig, ahead: int
    ) -> list[tuple[Tensor, Tensor]]:
        """Several batches, as `batch` makes one, drawn together: a device that is told of every operation
        works on more at a time."""
        clean, spoiled = self.batch(ahead * count, side, rng, config)
        return [(clean[i::ahead], spoiled[i::ahead]) for i in range(ahead)]


def _inputs(folder: Path) -> list[Path]:
    """The spoiled pictures of a folder of pairs, in the order of their names."""
    paths = (path for path in folder.glob("*_in.*") if path.stem.endswith("_in"))
    return sorted(path for path in paths if path.suffix.lower() in SUFFIXES)


def _name(path: Path) -> str:
    """NAME of NAME_in.png, NAME_gt.png and the like."""
    return path.stem.rpartition("_")[0]


def _in_a_row(
    planes: Sequence[np.ndarray], device: torch.device | str
) -> tuple[Tensor, Tensor, Tensor]:
    """Arrays uint8 [..., H, W] one after the other, where each begins, and their H and W."""
    sides = torch.tensor([plane.shape[-2:] for plane in planes])
    starts = torch.tensor([0] + [plane.size for plane in planes]).cumsum(0)
    values = torch.empty(int(starts[-1]), dtype=torch.uint8)
    for start, plane in zip(starts.tolist(), planes, strict=False):
        values[start : start + plane.size] = torch.from_numpy(plane.reshape(-1))
    return values.to(device), starts[:-1].to(device), sides.to(device)


def _decode_all(paths: Sequence[Path]) -> tuple[dict[Path, np.ndarray], list[str]]:
    """The images that can be read, uint8 [3, H, W], and the names of the others."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        decoded = dict(zip(paths, pool.map(_decode, paths), strict=True))
    good = {path: image for path, image in decoded.items() if image is not None}
    return good, [path.name for path in decoded if path not in good]


def _decode(path: Path) -> np.ndarray | None:
    try:
        return np.ascontiguousarray(read(path.read_bytes()).rgb.transpose(2, 0, 1))
    except (AicError, OSError):
        return None
