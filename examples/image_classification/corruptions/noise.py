"""Noise, independent for each pixel and channel. It does not depend on the size of the image."""

import numpy as np

from examples.image_classification.corruptions.pixels import draw, on_unit_range

GAUSSIAN = (0.04, 0.06, 0.08, 0.09, 0.10)
SHOT = (500, 250, 100, 75, 50)
IMPULSE = (0.01, 0.02, 0.03, 0.05, 0.07)
SPECKLE = (0.06, 0.10, 0.12, 0.16, 0.20)


def _normal(child: np.random.Generator, image: np.ndarray) -> np.ndarray:
    return child.standard_normal(image.shape, np.float32)


@on_unit_range
def gaussian_noise(pixels: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    """Adds normal noise."""
    return pixels + GAUSSIAN[severity - 1] * draw(_normal, pixels, rng)


@on_unit_range
def shot_noise(pixels: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    """Counts photons by a Poisson distribution, with a fixed mean for a white pixel."""
    photons = SHOT[severity - 1]
    return draw(lambda child, image: child.poisson(image * photons), pixels, rng) / photons


@on_unit_range
def impulse_noise(pixels: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    """Sets a share of the values to 0 or to 1, half each."""
    share = IMPULSE[severity - 1]
    uniform = draw(lambda child, image: child.random(image.shape, np.float32), pixels, rng)
    return np.where(uniform < share, uniform < share / 2, pixels)


@on_unit_range
def speckle_noise(pixels: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    """Adds normal noise in proportion to the value."""
    return pixels + pixels * SPECKLE[severity - 1] * draw(_normal, pixels, rng)
