"""How good a network is while it trains: rates and PSNR on held-out images, and their curves."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from aiocodec.config import STRIDE
from aiocodec.degrade import apply
from aiocodec.metrics import psnr_from_mse
from aiocodec.model import Model
from aiocodec.training.data import Pairs, Photographs

VALIDATION = ("clean", "noise:25", "noise:50", "camera", "haze", "rain", "snow", "jpeg:40")
VALIDATION_QUALITIES = (10, 50, 90)


@torch.no_grad()
def validate(
    model: Model,
    images: Photographs,
    degradations: tuple[str, ...] = VALIDATION,
    qualities: tuple[int, ...] = VALIDATION_QUALITIES,
    every: int = 1,
) -> list[dict[str, Any]]:
    """Mean bpp (from likelihoods of rounded symbols) and mean PSNR of 8-bit pixels against the
    clean images, cropped to multiples of 64, for every degradation (as `degrade.apply` names them;
    that of image i has seed i) and quality. Of the images, every `every`-th."""

    def spoiled(degradation: str, seed: int, clean: Tensor) -> Tensor:
        # drawn on the CPU, so that every machine validates on the same pixels
        rng = torch.Generator().manual_seed(seed)
        return apply(clean.cpu(), degradation, rng).to(clean.device)

    chosen = range(0, len(images), every)
    rows = []
    for degradation in degradations:
        samples = ((c, spoiled(degradation, i, c)) for i in chosen for c in [_cropped(images[i])])
        rows += _curve(model, degradation, samples, qualities)
    return rows


@torch.no_grad()
def validate_pairs(
    model: Model,
    pairs: Pairs,
    name: str,
    qualities: tuple[int, ...] = VALIDATION_QUALITIES,
    every: int = 1,
) -> list[dict[str, Any]]:
    """As `validate`, for pictures that are spoiled already; rows are named `name`."""
    chosen = range(0, len(pairs), every)
    samples = ((_cropped(pairs.clean[i]), _cropped(pairs.spoiled[i])) for i in chosen)
    return _curve(model, name, samples, qualities)


@torch.no_grad()
def deep_share(model: Model, images: Photographs, every: int = 1) -> float:
    """How many decibels clean images lose at quality 50 where the deep path of g_s gives the same
    everywhere, on average; about 0 where that has died, which no rate and no PSNR alone would tell."""
    g_s, lost = model.transforms.g_s, []
    phases = g_s.stride
    for i in range(0, len(images), every):
        x = _cropped(images[i])
        quality = torch.full((1,), 50.0, device=x.device)
        y = model.transforms.g_a(x, quality)
        y_hat, _, _ = model.entropy(y, model.transforms.h_a(y), quality, noise=False)
        linear, x_hat = g_s.linear_path(y_hat, quality), g_s(y_hat, quality)
        deep = F.pixel_unshuffle(x_hat - linear, phases)
        same = F.pixel_shuffle(deep.mean((2, 3), keepdim=True).expand_as(deep), phases)
        both, without = (
            psnr_from_mse((picture.clamp(0, 1) - x).square().mean().item())
            for picture in (x_hat, linear + same)
        )
        lost.append(both - without)
    return sum(lost) / len(lost)


def _cropped(image: Tensor) -> Tensor:
    """uint8 [3, H, W] as float [1, 3, h, w] in 0..1, sides cut to multiples of 64."""
    height, width = (side // STRIDE * STRIDE for side in image.shape[1:])
    return image[None, :, :height, :width].float() / 255


def _curve(
    model: Model, name: str, samples: Iterable[tuple[Tensor, Tensor]], qualities: tuple[int, ...]
) -> list[dict[str, Any]]:
    """A row per quality for (clean, spoiled) images."""
    results: dict[int, list[tuple[float, float]]] = {quality: [] for quality in qualities}
    for clean, x in samples:
        x = x.contiguous(memory_format=torch.channels_last)
        for quality in qualities:
            out = model(x, torch.tensor([float(quality)], device=x.device), noise=False)
            x_hat = (out.x_hat.clamp(0, 1) * 255).round() / 255
            mse = (x_hat - clean).square().mean().item()
            results[quality].append((out.bpp().item(), psnr_from_mse(mse)))
    rows = []
    for quality, points in results.items():
        bpp, psnr = (sum(column) / len(column) for column in zip(*points, strict=True))
        rows.append(
            {"degradation": name, "quality": quality, "bpp": round(bpp, 4), "psnr": round(psnr, 3)}
        )
    return rows


def plot(log: Path, folder: Path) -> bool:
    """Draw the validations of a log: rd.png, the RD curves with the newest boldly, and progress.png, PSNR
    at each quality over the megapixels shown, by degradation; False without matplotlib."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        return False
    rows = [json.loads(line) for line in log.read_text("utf-8").splitlines()]
    rows = [row for row in rows if "validation" in row]
    names = list(dict.fromkeys(p["degradation"] for row in rows for p in row["validation"]))
    columns = min(4, max(1, len(names)))
    lines = -(-max(1, len(names)) // columns)

    def curve(row: dict[str, Any], name: str) -> list[tuple[float, float]]:
        return [(p["bpp"], p["psnr"]) for p in row["validation"] if p["degradation"] == name]

    for picture, label in (("rd", "bits per pixel"), ("progress", "megapixels")):
        figure = Figure(figsize=(3.4 * columns, 3 * lines), layout="constrained")
        FigureCanvasAgg(figure)
        panels = figure.subplots(lines, columns, squeeze=False).flat
        for name, axes in zip(names, panels, strict=False):
            curves = {row["megapixels"]: curve(row, name) for row in rows if curve(row, name)}
            if picture == "rd":
                for age, points in enumerate(reversed(curves.values())):
                    old = {"color": "0.75", "zorder": 1}
                    style = old if age else {"color": "C0", "marker": "o"}
                    axes.plot(*zip(*points, strict=True), **style)
            else:
                for quality in zip(*curves.values(), strict=True):
                    axes.plot(list(curves), [psnr for _, psnr in quality], marker=".")
            axes.set(title=name, xlabel=label, ylabel="PSNR (dB)")
            axes.grid(alpha=0.3)
        figure.savefig(folder / f"{picture}.png", dpi=110)
    return True
