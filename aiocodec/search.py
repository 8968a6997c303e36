"""The encoder's own search (`--effort`): y is moved until bits and distortion together cost less.

    J(v) = bits(v_hat) + lambda n MSE(target, g_s(v_hat * step))        v = y / step, v_hat rounded

z stays as it is, and with it the steps. Rounding passes gradients on as if it were the identity. The
first step goes down the gradient by half the inverse of the curvature that one random probe finds in
lambda n MSE. A step counts only where J has fallen; then the next one is 1.3 times as long, else 0.4
times. (Adam moves the many symbols that nothing depends on, and fails. Momentum, curvature by channel,
and forgetting what rounding has added up were tried and are no better.) The decoder knows nothing of
all this.

J needs networks that have gradients: the entropy model in floating point, which differs from the exact
one by a thousandth of the bits. Whoever uses the result therefore compares the two files.

On a spoiled picture the target is not what was taken but what the network makes of it: see `target`.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from aiocodec.config import LATENT_STRIDE, STRIDE
from aiocodec.entropy.model import EntropyModel, level_of_quality, quality_of_level
from aiocodec.model import lmbda
from aiocodec.tiles import Progress, Tile, tiles
from aiocodec.transforms import Synthesis

EVALUATIONS = (0, 3, 4, 6, 8, 12, 16, 24, 32, 48)  # of J, by effort 0..9
WINDOW, HALO = 12, 1  # positions of z that are moved together, per side, and seen beside them
WINDOW_PIXELS = ((WINDOW + 2 * HALO) * STRIDE) ** 2
MEMORY = 3000  # bytes per pixel of a window that gradients take at most
WEATHER = 2.5  # code values that nine of ten clean pictures stay well below, see `target`

_CELL = STRIDE // LATENT_STRIDE
_FIRST = 0.5  # the first step, in inverse curvatures
_LONGER, _SHORTER = 1.3, 0.4  # the next one, after one that counts and one that does not


def search(
    y: Tensor,
    z_hat: Tensor,
    quality: int,
    evaluations: int,
    g_s: Synthesis,
    entropy: EntropyModel,
    wanted: NDArray[np.uint8],
    gray: bool,
    progress: Progress = lambda done: None,
) -> Tensor:
    """y [N, H, W], moved so that the file decodes closer to `wanted` for its bits.

    Args:
        z_hat: [Z, H/4, W/4], as the decoder has it.
        quality: 0..100.
        evaluations: of J, in every window of the picture.
        wanted: uint8 [h, w, 3], what the decoded picture should be.
        gray: whether the mean of the three channels is what counts.
    """
    with torch.inference_mode(False):
        found, z_hat = y.clone(), z_hat.clone()  # of what inference has made there are no gradients
        grid = tiles(int(z_hat.shape[1]), int(z_hat.shape[2]), WINDOW, HALO)
        for n, tile in enumerate(grid):
            window = _Window(found, z_hat, quality, g_s, entropy, wanted, gray, tile)
            found[(..., *tile.of(_CELL))] = window.descend(evaluations)
            del window
            progress((n + 1) / len(grid))
    return found


def cost(size: int, decoded: NDArray[np.uint8], wanted: NDArray[np.uint8], quality: int) -> float:
    """J of a file, in bits: that of `size` bytes of symbols, and of uint8 pixels [H, W, 3]."""
    pairs = zip(_strips(decoded), _strips(wanted), strict=True)
    error = sum(float(np.square(a - b).sum()) for a, b in pairs)
    return 8 * size + float(lmbda(torch.tensor(float(quality)))) * error / 3 / 255**2


class _Point(NamedTuple):
    """v, and what J says of it."""

    v: Tensor  # [1, N, h, w], with gradients
    v_hat: Tensor
    x_hat: Tensor  # [1, 3, 16 h, 16 w] without what pads the picture
    cost: Tensor  # J, in bits


class _Window:
    """J as a function of the part of y in a tile, what is around it being fixed."""

    def __init__(
        self,
        y: Tensor,
        z_hat: Tensor,
        quality: int,
        g_s: Synthesis,
        entropy: EntropyModel,
        wanted: NDArray[np.uint8],
        gray: bool,
        tile: Tile,
    ) -> None:
        self.tile, self.g_s, self.entropy, self.gray = tile, g_s, entropy, gray
        self.quality = torch.tensor([float(quality)], device=y.device)
        with torch.no_grad():
            level = quality_of_level(level_of_quality(self.quality, entropy.config), entropy.config)
            self.params = entropy.params(z_hat[(..., *tile.around(1))][None], level)
            self.step = entropy.step(self.params)
            self.start = y[(..., *tile.around(_CELL))][None] / self.step
        self.moved = torch.zeros_like(self.start[:1, :1])
        self.moved[(..., *tile.within(_CELL))] = 1
        rows, columns = tile.around(STRIDE)
        pixels = torch.from_numpy(np.array(wanted[rows, columns])).to(y.device)
        self.wanted = pixels.permute(2, 0, 1)[None].float() / 255
        self.weight = float(lmbda(self.quality)) / 3  # of a squared error, in bits

    def descend(self, evaluations: int) -> Tensor:
        """The part of y inside the tile, [N, h, w], of the lowest J that was met."""
        best = self._at(self.start)
        rate = _FIRST / self._curvature(best)
        gradient = self._gradient(best)
        for _ in range(evaluations - 1):
            tried = self._at(best.v.detach() - rate * gradient)
            if tried.cost < best.cost:
                best, rate = tried, rate * _LONGER
                gradient = self._gradient(best)
            else:
                rate *= _SHORTER
            del tried  # or else its gradients would take memory beside the next one's
        # The v that was found lies close to where rounding turns over, and the exact means differ a
        # little from these; v_hat is in the middle, and keeps its symbols.
        return (best.v_hat * self.step)[0][(..., *self.tile.within(_CELL))]

    def _at(self, v: Tensor) -> _Point:
        with torch.enable_grad():
            v = v.detach().requires_grad_(True)
            v_hat, likelihoods = self.entropy.code(v, self.params, noise=False)
            x_hat = self._g_s(v_hat)
            bits = -likelihoods.log2().sum()
            cost = bits + self.weight * (x_hat - self.wanted).square().sum()
        return _Point(v, v_hat.detach(), x_hat.detach(), cost)

    def _gradient(self, point: _Point) -> Tensor:
        (gradient,) = torch.autograd.grad(point.cost, point.v)
        return gradient * self.moved

    def _curvature(self, point: _Point) -> float:
        """Of the weighted squared error, for a symbol on average: every symbol goes up or down by a
        half at random, and the picture changes by so much."""
        with torch.no_grad():
            generator = torch.Generator().manual_seed(0)
            signs = torch.randint(0, 2, point.v.shape, generator=generator) - 0.5
            other = self._g_s(point.v_hat + signs.to(point.v.device))
            change = (other - point.x_hat).square().sum()
        return max(2 * self.weight * float(change) / (signs.numel() / 4), 1e-12)

    def _g_s(self, v_hat: Tensor) -> Tensor:
        """The picture in the window, without what pads it."""
        y_hat = (v_hat * self.step).contiguous(memory_format=torch.channels_last)
        x_hat = self.g_s(y_hat, self.quality)[..., : self.wanted.shape[2], : self.wanted.shape[3]]
        return x_hat.mean(1, keepdim=True).expand(-1, 3, -1, -1) if self.gray else x_hat


def target(
    taken: NDArray[np.uint8], restored: NDArray[np.uint8]
) -> tuple[NDArray[np.uint8], float]:
    """What a picture should decode to, uint8 [H, W, 3], and how much of it is what was taken, 0..1.

    On a clean picture that is the picture as it was taken; what the network restores of it lacks what
    the network cannot code. On a spoiled one it is `restored`, for the encoder must not spend bits on
    noise. In between it is the mean of both that errs least: their difference is noise, of a variance
    that the smoothest tenth of the picture tells, and beyond that what the network has missed. Where
    they differ by more than WEATHER code values in the means of blocks of 16x16 pixels, all is weather: of
    36 clean photographs nine in ten had at most 1.4, of 20 hazy ones all 27 and more. (Very strong noise, and
    a clean picture that the network takes for hazy, may differ by as much; then, too, it is not aimed at.)
    """
    total, means = 0.0, [np.zeros(0, np.float32)]
    for strip, other in zip(_strips(taken), _strips(restored), strict=True):
        difference = strip - other
        total += float(np.square(difference).sum())
        means.append(_blocks(difference).mean((0, 2)).ravel())
    variance, shifts = total / taken.size, np.concatenate(means)
    if variance == 0:
        return taken, 1.0
    if shifts.size and float(np.square(shifts).mean()) > WEATHER**2:
        return restored, 0.0
    share = max(0.0, 1 - noise_variance(taken) / variance)
    mean = restored + np.float32(share) * np.subtract(taken, restored, dtype=np.float32)
    return np.clip(mean + 0.5, 0, 255).astype(np.uint8), share


def noise_variance(rgb: NDArray[np.uint8]) -> float:
    """The variance of white noise in a picture uint8 [H, W, 3], in squared code values: that of the
    finest diagonal differences of 2x2 pixels, in blocks of 16x16, of which the tenth that is smoothest
    is taken for noise alone."""
    variances = [np.zeros(0, np.float32)]
    for strip in _strips(rgb):
        blocks = _blocks(strip)
        diagonal = blocks[::2, :, ::2] - blocks[1::2, :, ::2]
        diagonal = (diagonal - blocks[::2, :, 1::2] + blocks[1::2, :, 1::2]) / 2
        variances.append(np.square(diagonal).mean((0, 2)).ravel())
    found = np.concatenate(variances)
    return float(np.quantile(found, 0.1)) if found.size else 0.0


def _strips(rgb: NDArray[np.uint8]) -> Iterator[NDArray[np.float32]]:
    """A picture [H, W, 3] in strips of 16 rows; the last may have fewer."""
    for top in range(0, len(rgb), 16):
        yield rgb[top : top + 16].astype(np.float32)


def _blocks(strip: NDArray[np.float32]) -> NDArray[np.float32]:
    """The whole blocks of 16x16 pixels in a strip, [16, blocks, 16, 3]; none in one of fewer rows."""
    count = strip.shape[1] // 16 if len(strip) == 16 else 0
    return strip[:, : 16 * count].reshape(len(strip), count, 16, 3)
