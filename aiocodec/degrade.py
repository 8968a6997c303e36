"""Degradations for training, validation and evaluation: clean images in, spoiled ones out.

Every degradation takes clean images, a float tensor [B, 3, H, W] in 0..1 on any device, an amount (a
number, or [B] for one per image) and a `torch.Generator` of that device, and gives a tensor of the
same shape in 0..1. The same seed on the same kind of device gives the same pixels. `KINDS` names
them with the range of their amounts; `apply` takes them by name, as `noise:25`; `degrade` draws one,
or two on top of each other, for every image of a batch.

The weather is rendered by the models that the restoration literature uses: haze by the atmospheric
scattering model I = J t + A (1 - t), t = exp(-beta d) (Koschmieder; He et al. 2009) over the depth
that is given or over a guessed one, of rooms as well as of landscapes, under light of any pale colour;
rain and snow as translucent particles drawn out by their fall, in layers of different distance, sharp
and out of focus, under a veil of scattered light (Li et al., CVPR 2019; Chen et al., ICCV 2021), and
some of the rain as streaks of light that are added to the picture (Yang et al., CVPR 2017).
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor
from torch.nn import functional as F

from aiocodec.errors import AicError

MIXED_SHARE = 0.2  # of the images that `degrade` spoils get a second degradation
FILE_SHARE = 0.5  # of those with the noise of a camera; a JPEG file is the second
COARSE = 12  # pixels that the edges of known depth may be off by, being of maps 128 pixels long
ADDED_SHARE = 0.4  # of the images in rain have its light added; the others are covered by it
Amount = Tensor | float


def _per_image(amount: Amount, x: Tensor) -> Tensor:
    """A number or [B] as [B or 1, 1, 1, 1] beside x."""
    return torch.as_tensor(amount, dtype=x.dtype, device=x.device).reshape(-1, 1, 1, 1)


def _uniform(x: Tensor, rng: torch.Generator, low: float, high: float) -> Tensor:
    """A random number in low..high for every image, [B, 1, 1, 1]."""
    return low + (high - low) * torch.rand(len(x), 1, 1, 1, generator=rng, device=x.device)


def _log_uniform(x: Tensor, rng: torch.Generator, low: float, high: float) -> Tensor:
    """A random number in low..high, as often below as above sqrt(low * high), [B, 1, 1, 1]."""
    return torch.exp(_uniform(x, rng, math.log(low), math.log(high)))


def _normal(shape: torch.Size | tuple[int, ...], x: Tensor, rng: torch.Generator) -> Tensor:
    return torch.randn(shape, generator=rng, device=x.device, dtype=x.dtype)


def _to_8_bits(x: Tensor) -> Tensor:
    return (x * 255).round().clamp(0, 255) / 255


def gaussian_noise(x: Tensor, sigma: Amount, rng: torch.Generator) -> Tensor:
    """White Gaussian noise of standard deviation `sigma` (of 255), clipped and rounded to 8 bits."""
    return _to_8_bits(x + _normal(x.shape, x, rng) * _per_image(sigma, x) / 255)


def camera_noise(x: Tensor, amount: Amount, rng: torch.Generator) -> Tensor:
    """Noise of a sensor in 0..1: shot noise that grows with the light and read noise that does not,
    added to linear light, more of it in red and blue than in green, for half of the images spread
    out by a bilinear demosaicing and, more or less, by what smooths and resizes pictures after it
    (Foi et al. 2008; Brooks et al. 2019)."""
    light = x.clamp(min=0) ** 2.2
    shot = torch.exp(torch.lerp(*_logs(3e-4, 5e-2, x), _per_image(amount, x)))
    read = shot.sqrt() * _log_uniform(x, rng, 0.02, 0.15)
    gains = torch.cat([_uniform(x, rng, low, high) for low, high in ((1, 2.4), (1, 1), (1, 2))], 1)
    noise = _normal(x.shape, x, rng) * (gains * (shot * light + read.square())).sqrt()
    rows, columns = (torch.arange(side, device=x.device) % 2 for side in x.shape[2:])
    checker = rows[:, None] + columns  # 0 where red was sampled, 1 for green, 2 for blue
    green = x.new_tensor([[0, 1, 0], [1, 4, 1], [0, 1, 0]]) / 4
    others = x.new_tensor([[1, 2, 1], [2, 4, 2], [1, 2, 1]]) / 4
    kernels = torch.stack([others, green, others])[:, None]
    mosaic = noise * torch.stack([checker == c for c in range(3)])
    mode = (
        "reflect" if min(x.shape[2:]) > 1 else "replicate"
    )  # reflection keeps the mosaic's parity
    spread = F.conv2d(F.pad(mosaic, (1, 1, 1, 1), mode=mode), kernels, groups=3)
    softer = F.conv2d(
        F.pad(spread, (1, 1, 1, 1), mode=mode), others[None, None].expand(3, 1, 3, 3) / 4, groups=3
    )
    spread = torch.lerp(spread, softer, _uniform(x, rng, -0.5, 1).clamp(min=0))
    noise = torch.where(_uniform(x, rng, 0, 1) < 0.5, noise, spread)
    return _to_8_bits((light + noise).clamp(0, 1) ** (1 / 2.2))


def _logs(low: float, high: float, x: Tensor) -> tuple[Tensor, Tensor]:
    return x.new_tensor(math.log(low)), x.new_tensor(math.log(high))


def blur(x: Tensor, sigma: Amount, rng: torch.Generator) -> Tensor:
    """A Gaussian blur of `sigma` pixels (to 3)."""
    reach = 9
    offsets = torch.arange(-reach, reach + 1, device=x.device, dtype=x.dtype)
    spread = _per_image(sigma, x).clamp(min=0.05).expand(len(x), 1, 1, 1)
    kernel = torch.exp(-0.5 * (offsets / spread).square())
    kernel = (kernel / kernel.sum(-1, keepdim=True)).expand(-1, 3, -1, -1).reshape(-1, 1, 1, 19)
    out = F.pad(x, (reach,) * 4, mode="replicate").reshape(
        1, -1, *(s + 2 * reach for s in x.shape[2:])
    )
    out = F.conv2d(out, kernel, groups=kernel.shape[0])
    out = F.conv2d(out, kernel.mT, groups=kernel.shape[0])
    return _to_8_bits(out.view(x.shape))


# Tables K.1 and K.2 of ITU-T T.81, the quantisation of luma and chroma at quality 50.
_LUMA = """16 11 10 16 24 40 51 61 12 12 14 19 26 58 60 55 14 13 16 24 40 57 69 56 14 17 22 29 51 87 80 62
18 22 37 56 68 109 103 77 24 35 55 64 81 104 113 92 49 64 78 87 103 121 120 101 72 92 95 98 112 100 103 99"""
_CHROMA = """17 18 24 47 99 99 99 99 18 21 26 66 99 99 99 99 24 26 56 99 99 99 99 99 47 66 99 99 99 99 99 99
99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99"""


def _dct8(x: Tensor) -> Tensor:
    n = torch.arange(8, device=x.device, dtype=x.dtype)
    basis = torch.cos(math.pi / 8 * (n + 0.5) * n[:, None]) / 2
    basis[0] /= math.sqrt(2)
    return basis


def _quantised(plane: Tensor, table: str, scale: Tensor) -> Tensor:
    """Planes [B, C, H, W] in -128..127, sides multiples of 8, after JPEG's DCT and rounding."""
    b, c, height, width = plane.shape
    basis = _dct8(plane)
    steps = plane.new_tensor([int(step) for step in table.split()]).view(8, 8)
    steps = ((steps * scale + 50) / 100).floor().clamp(1, 255)[:, None, None]
    blocks = plane.view(b, c, height // 8, 8, width // 8, 8).transpose(3, 4)
    coefficients = basis @ blocks @ basis.T
    coefficients = (coefficients / steps[:, :, None]).round() * steps[:, :, None]
    return (basis.T @ coefficients @ basis).transpose(3, 4).reshape(plane.shape)


def jpeg(x: Tensor, quality: Amount, rng: torch.Generator) -> Tensor:
    """What a JPEG file of `quality` (1..100, as libjpeg counts, chroma 4:2:0) would decode to."""
    height, width = x.shape[2:]
    x = F.pad(x, (0, -width % 16, 0, -height % 16), mode="replicate")
    quality = _per_image(quality, x).expand(len(x), 1, 1, 1)
    scale = torch.where(quality < 50, (5000 / quality).floor(), 200 - 2 * quality).view(-1, 1, 1)
    r, g, b = (x * 255).split(1, dim=1)
    y = 0.299 * r + 0.587 * g + 0.114 * b
    chroma = torch.cat([(b - y) / 1.772, (r - y) / 1.402], dim=1)
    y = _quantised(y - 128, _LUMA, scale) + 128
    chroma = _quantised(F.avg_pool2d(chroma, 2), _CHROMA, scale)
    chroma = F.interpolate(chroma, scale_factor=2, mode="bilinear")
    cb, cr = chroma.split(1, dim=1)
    b, r = y + 1.772 * cb, y + 1.402 * cr
    g = (y - 0.299 * r - 0.114 * b) / 0.587
    return _to_8_bits(torch.cat([r, g, b], dim=1)[..., :height, :width] / 255)


def _clouds(x: Tensor, rng: torch.Generator, octaves: int = 5) -> Tensor:
    """A smooth random field in 0..1, [B, 1, H, W]: value noise, every octave twice as fine and half
    as strong."""
    field = x.new_zeros(len(x), 1, *x.shape[2:])
    for octave in range(octaves):
        grid = torch.rand(len(x), 1, *(2 + 2**octave,) * 2, generator=rng, device=x.device)
        grid = F.interpolate(grid, x.shape[2:], mode="bicubic", align_corners=True)
        field += grid * 0.5**octave
    return _stretched(field)


def _stretched(field: Tensor) -> Tensor:
    low, high = field.amin((2, 3), keepdim=True), field.amax((2, 3), keepdim=True)
    return (field - low) / (high - low).clamp(min=1e-6)


def _box(x: Tensor, radius: int) -> Tensor:
    """The mean over a square of 2 * radius + 1 pixels, edges repeated."""
    x = F.pad(x, (radius,) * 4, mode="replicate")
    return F.avg_pool2d(F.avg_pool2d(x, (2 * radius + 1, 1), 1), (1, 2 * radius + 1), 1)


def _guided(x: Tensor, guide: Tensor, radius: int, epsilon: float = 3e-3) -> Tensor:
    """x smoothed, but with the edges of `guide` (guided filter, He et al. 2010)."""
    mean_x, mean_g = _box(x, radius), _box(guide, radius)
    slope = _box(x * guide, radius) - mean_x * mean_g
    slope = slope / (_box(guide * guide, radius) - mean_g.square() + epsilon)
    return _box(slope, radius) * guide + _box(mean_x - slope * mean_g, radius)


def _room(x: Tensor, rng: torch.Generator) -> Tensor:
    """The distance of walls, floor and ceiling of a box that one looks into, in 0..1, [B, 1, H, W]."""
    down = torch.linspace(-1, 1, x.shape[2], device=x.device).view(1, 1, -1, 1)
    across = torch.linspace(-1, 1, x.shape[3], device=x.device).view(1, 1, 1, -1)
    off_axis = torch.maximum(
        (down - _uniform(x, rng, -0.7, 0.7)).abs(),
        (across - _uniform(x, rng, -0.9, 0.9)).abs() * _uniform(x, rng, 0.5, 1.5),
    )
    wall = _uniform(x, rng, 0.15, 0.7)  # where the far wall begins
    return _stretched(1 / torch.maximum(off_axis, wall))


def pseudo_depth(x: Tensor, rng: torch.Generator) -> Tensor:
    """A guess at the distance of every pixel, [B, 1, H, W], positive, of mean 1.

    A ground plane that recedes upwards or, for a third of the images, a room, random relief, and the
    look of the image (far things are pale, smooth and high up), blended in random shares and fitted
    to the edges of the image. The nearest of it is at 3 % of the whole depth in wide landscapes, and
    at almost half before a near wall.
    """
    height, width = x.shape[2:]
    radius = max(2, min(height, width) // 12)
    luma = x.mean(1, keepdim=True)
    tilt = _uniform(x, rng, -0.7, 0.7)
    down = torch.linspace(0, 1, height, device=x.device).view(1, 1, -1, 1)
    across = torch.linspace(-0.5, 0.5, width, device=x.device).view(1, 1, 1, -1)
    plane = _stretched(1 - down * tilt.cos() + across * tilt.sin()) ** _uniform(x, rng, 0.7, 3)
    plane = torch.where(_uniform(x, rng, 0, 1) < 1 / 3, _room(x, rng), plane)
    saturation = x.amax(1, keepdim=True) - x.amin(1, keepdim=True)
    texture = _box((luma - _box(luma, 2)).abs(), radius // 2)
    look = _stretched(_box(luma - saturation - 4 * texture, radius // 4) + 0.5 * (1 - down))
    shares = [_uniform(x, rng, 0, share) for share in (1.0, 0.5, 1.0)]
    parts = (plane, _clouds(x, rng), look)
    relief = torch.cat([s * part for s, part in zip(shares, parts, strict=True)], 1)
    relief = _stretched(relief.sum(1, keepdim=True))
    depth = _guided(relief, luma, radius).clamp(0, 1) + _log_uniform(x, rng, 0.03, 0.8)
    return depth / depth.mean((2, 3), keepdim=True)


def _air_light(
    x: Tensor, rng: torch.Generator, low: float, high: float, tint: float = 0.0
) -> Tensor:
    """A pale gray with a trace of colour, and up to `tint` of red against blue, [B, 3, 1, 1]."""
    warmth = _uniform(x, rng, -tint, tint) * x.new_tensor([1, 0.2, -1]).view(1, 3, 1, 1)
    trace = 0.02 * _normal((len(x), 3, 1, 1), x, rng).clamp(-2, 2)
    return _uniform(x, rng, low, high) + warmth + trace


def _thickness(x: Tensor, amount: Tensor, rng: torch.Generator, depth: Tensor | None) -> Tensor:
    """beta d of the atmospheric model, [B, 1, H, W]: of a guessed depth, of mean 1, or of a known one,
    where beta is 0.3 to 3 over the whole of it (0.6 to 1.8 in RESIDE, Li et al. 2019)."""
    if depth is None:
        return -torch.log(0.9 - 0.7 * amount) * pseudo_depth(x, rng)
    sharp = _guided(depth.nan_to_num(), x.mean(1, keepdim=True), COARSE, epsilon=1e-3)
    known = torch.exp(torch.lerp(*_logs(0.3, 3, x), amount)) * sharp.clamp(0, 1)
    unknown = depth.isnan().flatten(1).any(1).view(-1, 1, 1, 1)
    return torch.where(unknown, _thickness(x, amount, rng, None), known) if unknown.any() else known


def haze(x: Tensor, amount: Amount, rng: torch.Generator, depth: Tensor | None = None) -> Tensor:
    """Haze, smoke and mist, gray, bluish or brown, by day or towards the night, in landscapes and in
    rooms.

    `depth` [B, 1, H, W] is the distance of every pixel in 0..1, 1 for the farthest of the picture
    that x may be a patch of, and as coarse as predicted depth is: it is fitted to the edges of x.
    The haze leaves 74 % (amount 0) to 5 % (amount 1) of the light of the farthest then. The depth of
    an image that is NaN, and all depth without `depth`, is guessed: 90 % to 20 % of the light at mean
    depth is left.
    """
    t = torch.exp(-_thickness(x, _per_image(amount, x), rng, depth))
    return _to_8_bits(x * t + _air_light(x, rng, 0.5, 1.0, tint=0.1) * (1 - t))


def _particles(
    x: Tensor,
    rng: torch.Generator,
    coverage: Tensor,
    radius: Tensor,
    length: Tensor,
    angle: Tensor,
    softness: Tensor,
    rim: Tensor | None = None,
) -> Tensor:
    """Opacity in 0..1, [B, 1, H, W], of particles at random places that cover a share `coverage` of
    the image (one number, or one for every pixel): capsules of `radius` pixels (to half opacity)
    drawn out over `length` pixels along `angle` (from the vertical, radians), with edges `softness`
    pixels wide, more translucent by a share `rim` within than there. Every particle is more or less
    translucent."""
    height, width = x.shape[2:]
    # distance of every pixel to a segment through the origin, coordinates wrapping around
    dy = (torch.fft.fftfreq(height, device=x.device) * height).view(1, 1, -1, 1)
    dx = (torch.fft.fftfreq(width, device=x.device) * width).view(1, 1, 1, -1)
    along = dx * angle.sin() + dy * angle.cos()
    across = dx * angle.cos() - dy * angle.sin()
    beyond = (along.abs() - length / 2).clamp(min=0)
    distance = (across.square() + beyond.square()).sqrt()
    shape = torch.sigmoid(4 * (radius - distance) / softness)
    if rim is not None:
        shape = shape * (1 - rim * torch.sigmoid(4 * (0.8 * radius - distance) / softness))
    density = (coverage / shape.sum((2, 3), keepdim=True)).clamp(max=0.5)
    chance = torch.rand(len(x), 1, height, width, generator=rng, device=x.device)
    seeds = torch.where(chance < density, 0.3 + 0.7 * chance / density, 0.0)
    field = torch.fft.irfft2(torch.fft.rfft2(seeds) * torch.fft.rfft2(shape), s=(height, width))
    return field.clamp(0, 1)


def _smooth_noise(x: Tensor, rng: torch.Generator, channels: int, cell: int) -> Tensor:
    """White noise of standard deviation 1 at every `cell`th pixel, a little less between,
    [B, channels, H, W]."""
    sides = [-(-side // cell) + 1 for side in x.shape[2:]]
    return F.interpolate(_normal((len(x), channels, *sides), x, rng), x.shape[2:], mode="bilinear")


def _warped(x: Tensor, rng: torch.Generator, by: Tensor, cell: int) -> Tensor:
    """x with every pixel taken from about `by` pixels beside it, alike over `cell` pixels."""
    there = F.affine_grid(torch.eye(2, 3).to(x).expand(len(x), 2, 3), list(x.shape), False)
    aside = 2 * by * _smooth_noise(x, rng, 2, cell) / x.new_tensor(x.shape[:1:-1]).view(2, 1, 1)
    there = there + aside.permute(0, 2, 3, 1)
    return F.grid_sample(x, there, padding_mode="border", align_corners=False)


def _veil(x: Tensor, rng: torch.Generator, amount: Tensor) -> Tensor:
    """The mist of particles too far to be seen: up to `amount` of the light (one number for an image,
    or one for every pixel), a little less below."""
    down = torch.linspace(0, 1, x.shape[2], device=x.device).view(1, 1, -1, 1)
    share = amount * _uniform(x, rng, 0, 1) * (1 - 0.4 * _uniform(x, rng, 0, 1) * down)
    return torch.lerp(x, _air_light(x, rng, 0.5, 0.95, tint=0.04), share)


def _ambient(x: Tensor, rng: torch.Generator, light: Tensor, most: float) -> Tensor:
    """`light` [B, 3, 1, 1], up to `most` of it of the mean colour of the image: drops and flakes
    send on what is around them."""
    return torch.lerp(light, x.mean((2, 3), keepdim=True), _uniform(x, rng, 0, most))


def rain(x: Tensor, amount: Amount, rng: torch.Generator) -> Tensor:
    """Rain from drizzle (amount 0) to downpour (1): fine short streaks far away and long near ones,
    sharp or out of focus, all nearly parallel.

    They cover what is behind them, under a veil, or, in ADDED_SHARE of the images, are light added
    to a clear image, denser, longer and of one or two directions, as the heavy rain of Rain100H
    (Yang et al. 2017) and Rain800 (Zhang et al. 2019) is."""
    amount = _per_image(amount, x)
    adds = (_uniform(x, rng, 0, 1) < ADDED_SHARE).to(x.dtype)
    scale = _log_uniform(x, rng, 0.6, 2.0)  # the nearness of it all
    slant = _uniform(x, rng, -1, 1)
    slant = 0.8 * slant * slant.abs()
    cross = adds * _uniform(x, rng, -2.0, 0.7).clamp(min=0) * -slant.sign()
    gusts = _uniform(x, rng, 0.01, 0.1)
    light = _ambient(x, rng, _air_light(x, rng, 0.65, 1.0), 0.4)
    drizzle = 0.04 + 0.12 * adds
    strength = 1 + (0.8 * amount - 0.5) * adds
    x = _veil(x, rng, 0.6 * amount * (1 - adds))
    for i, (lengths, radii, cover, opacities) in enumerate(
        (
            ((3, 9), (0.3, 0.5), 0.30, (0.1, 0.5)),
            ((6, 20), (0.3, 0.6), 0.35, (0.15, 0.5)),
            ((14, 50), (0.4, 0.9), 0.25, (0.2, 0.7)),
            ((30, 100), (0.6, 2.0), 0.12, (0.2, 0.8)),
        )
    ):
        share = _uniform(x, rng, -0.1, 1).clamp(min=0.003) + 0.2 * adds
        layer = _particles(
            x,
            rng,
            coverage=cover * (drizzle + (1 - drizzle) * amount) * share,
            radius=scale * _uniform(x, rng, *radii) * (1 - 0.4 * adds),
            length=scale * _uniform(x, rng, *lengths) * (1 + 0.6 * adds),
            angle=slant + gusts * _uniform(x, rng, -1, 1) + (cross if i % 2 else 0),
            softness=_log_uniform(x, rng, 0.6, 3.5),
        )
        layer = layer * (strength * _uniform(x, rng, *opacities))
        x = x + layer * (light - (1 - adds) * x)
    return _to_8_bits(x)


def snow(x: Tensor, amount: Amount, rng: torch.Generator) -> Tensor:
    """Falling snow, from a few flakes (amount 0) to a storm (1), in gusts: grains that melt into a
    veil, ragged flakes, and near ones out of focus, these more translucent, some as discs with a
    bright rim. All are drawn out by their fall, hardly or into long streaks, white, bluish or, in
    the dark, dim."""
    amount = _per_image(amount, x)
    scale = _log_uniform(x, rng, 0.6, 1.7)
    slant = _uniform(x, rng, -1.2, 1.2)
    speed = 14 * _uniform(x, rng, 0, 1) ** 3  # length of the trace in radii
    many = (0.06 + 0.94 * amount) * _log_uniform(x, rng, 0.6, 2.4)
    white = _ambient(x, rng, _air_light(x, rng, 0.75, 1.0, tint=0.04), 0.4)
    gusts = torch.exp(_uniform(x, rng, 0, 4) * _clouds(x, rng, octaves=3))
    gusts = gusts / gusts.mean((2, 3), keepdim=True)
    x = _veil(x, rng, 0.5 * amount * gusts.clamp(max=1.6))
    for radii, cover, blurs, opacities, cell in (
        ((0.3, 1.0), 0.16, (0.6, 1.5), (0.2, 1), 1),
        ((1.0, 2.5), 0.09, (0.7, 1.3), (0.5, 1), 2),
        ((2.5, 6.0), 0.07, (0.4, 1.5), (0.4, 1), 4),
        ((6.0, 15.0), 0.08, (0.3, 1.5), (0.15, 0.7), 8),
    ):
        radius = scale * _uniform(x, rng, *radii)
        length = radius * speed * _uniform(x, rng, 0.5, 1)
        compact = radius / (radius + length)
        rim = compact * _uniform(x, rng, -1, 0.8).clamp(min=0) if cell > 2 else None
        ragged = compact if rim is None else compact - rim
        share = many * _uniform(x, rng, -0.1, 1).clamp(min=0.003)
        layer = _particles(
            x,
            rng,
            coverage=cover * share * gusts,
            radius=radius,
            length=length,
            angle=slant + _uniform(x, rng, -0.3, 0.3),
            softness=(radius * _uniform(x, rng, *blurs)).clamp(min=0.8),
            rim=rim,
        )
        if cell > 1:
            layer = _warped(layer, rng, 0.4 * radius * ragged, cell)
        layer = layer * (1 + (0.2 + 0.4 * ragged) * _smooth_noise(x, rng, 1, cell))
        x = torch.lerp(x, white, (layer * _uniform(x, rng, *opacities)).clamp(0, 1))
    return _to_8_bits(x)


class Kind(NamedTuple):
    """A degradation with the amounts that `degrade` draws from, its weight among the others, and
    the amounts that it takes."""

    apply: Callable[..., Tensor]  # of x, amount and rng; haze takes a depth, too
    mild: float
    severe: float
    weight: float
    limits: tuple[float, float] = (0.0, 1.0)


KINDS = {
    "noise": Kind(gaussian_noise, 0, 55, 5, (0, 255)),  # standard deviation (paper, section 4.1)
    "camera": Kind(camera_noise, 0, 1, 2),
    "haze": Kind(haze, 0, 1, 2),
    "rain": Kind(rain, 0, 1, 2),
    "snow": Kind(snow, 0, 1, 2),
    "jpeg": Kind(jpeg, 95, 30, 1, (1, 100)),  # quality
    "blur": Kind(blur, 0.2, 1.6, 0.5, (0, 3)),  # standard deviation in pixels
}
_WEATHER = ("haze", "rain", "snow")
_SECOND = ("blur", "noise", "camera", "jpeg")  # what happens in the camera, after the weather


def _spread(kind: Kind, count: int, x: Tensor, rng: torch.Generator) -> Tensor:
    u = torch.rand(count, generator=rng, device=x.device)
    return kind.mild + (kind.severe - kind.mild) * u


def apply(x: Tensor, spec: str, rng: torch.Generator) -> Tensor:
    """x after the degradation `spec`: `clean`, a name of KINDS (an amount is then drawn for every
    image), a name with an amount as `noise:25`, or several joined with `+`, first to last. Raises
    AicError for any other."""
    for part in spec.split("+"):
        name, colon, number = part.partition(":")
        if name == "clean" and not colon:
            continue
        if name not in KINDS:
            raise AicError(
                f"no degradation is called {name!r}; there are clean, {', '.join(KINDS)}"
            )
        kind = KINDS[name]
        amount: Amount = _spread(kind, len(x), x, rng)
        if colon:
            low, high = kind.limits
            try:
                amount = float(number)
            except ValueError:
                amount = math.nan
            if not low <= amount <= high:
                raise AicError(f"the amount of {name} is {low:g} to {high:g}, not {number!r}")
        x = kind.apply(x, amount, rng)
    return x


def _carry_out(
    plans: list[tuple[str, ...]], x: Tensor, rng: torch.Generator, depth: Tensor | None = None
) -> Tensor:
    """x with image i after the kinds that plans[i] names, first to last, each of a random amount; the
    same pixels where it names none."""
    groups: dict[tuple[str, ...], list[int]] = {}
    for i, plan in enumerate(plans):
        groups.setdefault(plan, []).append(i)
    groups.pop((), None)
    out = x.clone()
    for plan, members in groups.items():
        index = torch.tensor(members).to(x.device, non_blocking=True)
        part = x[index]
        for name in plan:
            kind, top, left = KINDS[name], 0, 0
            given = {"depth": depth[index]} if name == "haze" and depth is not None else {}
            if name == "jpeg":  # the grid of a file lies anywhere under a patch
                top, left = torch.randint(16, (2,), generator=rng, device=x.device).tolist()
                part = F.pad(part, (left, 0, top, 0), mode="replicate")
            part = kind.apply(part, _spread(kind, len(members), x, rng), rng, **given)
            part = part[..., top:, left:]
        out[index] = part
    return out


def _one_of(names: Sequence[str], chance: float) -> tuple[str, ...]:
    """One of the names, all as likely, or none of none; `chance` is random in 0..1."""
    return (names[int(chance * len(names))],) if names else ()


def degrade(x: Tensor, rng: torch.Generator, clean: float, depth: Tensor | None = None) -> Tensor:
    """A random degradation for every image of a batch: none with probability `clean`, otherwise one
    of KINDS by weight or, for a fifth of them, that and a later one of what a camera adds: blur,
    noise, JPEG artefacts. Half of the noise of cameras is in JPEG files. `depth` is for `haze`."""
    chances = torch.rand(4, len(x), generator=rng, device=x.device).cpu()
    names = list(KINDS)
    edges = torch.tensor([kind.weight for kind in KINDS.values()]).cumsum(0)
    plans: list[tuple[str, ...]] = []
    for is_clean, is_mixed, first, second in chances.T.tolist():
        name = names[int((edges <= first * edges[-1]).sum())]
        later = _SECOND if name in _WEATHER else _SECOND[_SECOND.index(name) + 1 :]
        mixed = is_mixed < (FILE_SHARE if name == "camera" else MIXED_SHARE)
        plan = (name, *(_one_of(later, second) if mixed else ()))
        plans.append(() if is_clean < clean else plan)
    return _carry_out(plans, x, rng, depth)


def faded(x: Tensor, rng: torch.Generator, share: float) -> Tensor:
    """No degradation: clean images, every one with probability `share` in other tones, as photographs are
    also developed: blacks lifted by up to a fifth, whites lowered by up to a tenth, tinted, darker or
    brighter between. The others keep their pixels. A black that is gray says little of haze then."""
    tints = 0.02 * _normal((2, len(x), 3, 1, 1), x, rng)
    black = (_uniform(x, rng, 0, 0.2) + tints[0]).clamp(min=0)
    white = (_uniform(x, rng, 0.9, 1) + tints[1]).clamp(max=1)
    toned = torch.lerp(black, white, x ** _log_uniform(x, rng, 0.7, 1.4))
    return torch.where(_uniform(x, rng, 0, 1) < share, _to_8_bits(toned), x)


def on_top(x: Tensor, rng: torch.Generator, share: float = MIXED_SHARE) -> Tensor:
    """Images that are spoiled already, every one with probability `share` after one of what a camera
    adds: blur, noise, JPEG artefacts. The others keep their pixels."""
    chances = torch.rand(2, len(x), generator=rng, device=x.device).cpu()
    plans = [
        _one_of(_SECOND, which) if mixed < share else () for mixed, which in chances.T.tolist()
    ]
    return _carry_out(plans, x, rng)


def rehaze(x: Tensor, depth: Tensor, rng: torch.Generator) -> Tensor:
    """Every image in haze of a random amount, by its `depth` as `haze` takes it, and some of them
    after what a camera adds."""
    return on_top(_carry_out([("haze",)] * len(x), x, rng, depth), rng)


def contact_sheet(images: Tensor, seed: int = 0) -> np.ndarray:
    """What the degradations do to photographs uint8 [K, 3, H, W]: a row for every kind, mild in the
    first column, severe in the last, and three rows of `degrade`; uint8 [rows, columns, 3]."""
    rng = torch.Generator().manual_seed(seed)
    x = images.float() / 255
    columns, _, height, width = x.shape
    steps = torch.linspace(0, 1, columns)
    rows = []
    for name, kind in KINDS.items():
        amounts = kind.mild + (kind.severe - kind.mild) * steps
        rows.append((kind.apply(x, amounts, rng), [f"{name} {a:.3g}" for a in amounts.tolist()]))
    rows += [(degrade(x, rng, clean=0), ["any"] * columns) for _ in range(3)]
    sheet = Image.new("RGB", (columns * (width + 4), len(rows) * (height + 16)), "white")
    draw = ImageDraw.Draw(sheet)
    for i, (pictures, labels) in enumerate(rows):
        for j, label in enumerate(labels):
            pixels = (pictures[j] * 255).round().byte().permute(1, 2, 0).numpy()
            corner = (j * (width + 4), i * (height + 16))
            draw.text(corner, label, fill="black")
            sheet.paste(Image.fromarray(pixels), (corner[0], corner[1] + 14))
    return np.asarray(sheet)
