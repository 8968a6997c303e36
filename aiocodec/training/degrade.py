"""Degradations for training and validation: clean images in, spoiled ones out.

Every function takes a float tensor [B, 3, H, W] in 0..1 on any device and a `torch.Generator` of the
same device, and gives a tensor of the same shape in 0..1; the same seed gives the same pixels.
"""

import torch
from torch import Tensor

MAX_SIGMA = 55.0  # of 255, the strongest Gaussian noise (paper, section 4.1)
CLEAN_PROBABILITY = 0.2  # share of inputs left as they are (paper, section 4.1)


def gaussian_noise(x: Tensor, sigma: Tensor | float, rng: torch.Generator) -> Tensor:
    """White Gaussian noise of standard deviation `sigma` (of 255; a number or [B]), clipped and
    rounded to 8 bits as in a file."""
    sigma = torch.as_tensor(sigma, dtype=x.dtype, device=x.device).reshape(-1, 1, 1, 1)
    noise = torch.randn(x.shape, generator=rng, device=x.device, dtype=x.dtype)
    return ((x * 255 + noise * sigma).round().clamp(0, 255)) / 255


def degrade(x: Tensor, rng: torch.Generator, clean: float = CLEAN_PROBABILITY) -> Tensor:
    """A random degradation for every image of a batch: none with probability `clean`, otherwise
    Gaussian noise of a strength uniform in 0..55."""
    strength, chance = torch.rand(2, x.shape[0], generator=rng, device=x.device)
    noisy = gaussian_noise(x, strength * MAX_SIGMA, rng)
    return torch.where((chance < clean)[:, None, None, None], x, noisy)
