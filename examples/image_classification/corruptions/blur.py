"""Blur. Its lengths are in pixels of an image of side 32, and grow with the side."""

import functools
import math

import numpy as np
from scipy import ndimage, sparse

from examples.image_classification.corruptions.pixels import SIDE, draw, on_unit_range, scale_of

DEFOCUS = ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1))  # radius, sigma of its edge
GLASS = ((0.05, 1), (0.25, 1), (0.4, 1), (0.25, 2), (0.4, 2))  # sigma, passes
MOTION = ((6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5))  # radius, sigma
ZOOM = (1.06, 1.11, 1.15, 1.20, 1.25)  # the largest; in steps of 0.01
GAUSSIAN = (0.4, 0.6, 0.7, 0.8, 1)  # sigma


def smooth(pixels: np.ndarray, sigma: float) -> np.ndarray:
    """Filters height and width, axes 1 and 2, by a Gaussian, with the edges repeated outside."""
    return ndimage.gaussian_filter(pixels, sigma, axes=(1, 2), mode="nearest")


@on_unit_range
def gaussian_blur(pixels: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    """Convolves with a Gaussian."""
    del rng
    return smooth(pixels, GAUSSIAN[severity - 1] * scale_of(pixels))


def disk(radius: float, sigma: float, reach: int) -> np.ndarray:
    """Returns the kernel of a defocused lens: a disk with edges softened by a Gaussian.

    Args:
      radius: Radius of the disk, in pixels.
      sigma: Standard deviation of the Gaussian, in pixels.
      reach: Pixels beyond which the Gaussian is cut off.
    """
    size = math.ceil(radius) + reach
    rows, columns = np.ogrid[-size : size + 1, -size : size + 1]
    kernel = (rows**2 + columns**2 <= radius**2).astype(np.float32)
    kernel = ndimage.gaussian_filter(kernel, sigma, mode="constant", radius=reach)
    return kernel / kernel.sum()


@on_unit_range
def defocus_blur(pixels: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    """Convolves with a disk."""
    del rng
    scale = scale_of(pixels)
    radius, sigma = DEFOCUS[severity - 1]
    kernel = disk(radius * scale, sigma * scale, reach=math.ceil(scale))
    return ndimage.convolve(pixels, kernel[None, :, :, None], mode="mirror")


@on_unit_range
def glass_blur(pixels: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    """Blurs, gives each pixel the value of a neighbour, and blurs again.

    The code of the published images swaps pixels by `a, b = b, a` on views, which NumPy evaluates
    one after the other, so that it copies. From the last pixel to the first, this is a copy from
    above, from the left or both, for all pixels at once. The first two rows and columns stay.
    """
    scale = scale_of(pixels)
    sigma, passes = GLASS[severity - 1]
    n, height, width, _ = pixels.shape
    shape = (passes, 2, SIDE, SIDE)
    offsets = draw(lambda child, _: child.integers(-1, 1, shape), pixels, rng)
    offsets[..., :2, :] = offsets[..., :2] = 0
    image, row, column = np.ogrid[:n, :height, :width]
    offsets = np.floor(scale * offsets).astype(int)
    offsets = offsets[..., row[0] * SIDE // height, column[0] * SIDE // width]
    pixels = smooth(pixels, sigma * scale)
    for down, right in offsets.transpose(1, 2, 0, 3, 4):
        pixels = pixels[image, row + down, column + right]
    return smooth(pixels, sigma * scale)


def smear(pixels: np.ndarray, radius: float, sigma: float, degrees: np.ndarray) -> np.ndarray:
    """Averages along a line that starts at the pixel, weighted by half a Gaussian.

    Each image has its own angle. Taps are at the nearest pixel, and at the edge's outside of it, as
    in ImageMagick's motion blur, with which the published images are made.
    """
    steps = np.arange(2 * math.ceil(radius) + 1)
    weights = np.exp(-0.5 * (steps / sigma) ** 2)
    weights = (weights / weights.sum()).astype(np.float32)
    n, height, width = pixels.shape[:3]
    image, row, column = np.ogrid[:n, :height, :width]
    angle = np.deg2rad(degrees)[:, None, None]
    total = np.zeros_like(pixels)
    for step, weight in zip(steps, weights, strict=True):
        down, right = (np.ceil(step * f(angle) - 0.5).astype(int) for f in (np.sin, np.cos))
        rows, columns = np.clip(row + down, 0, height - 1), np.clip(column + right, 0, width - 1)
        total += weight * pixels[image, rows, columns]
    return total


@on_unit_range
def motion_blur(pixels: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    """Smears the image along a direction at random, up to 45 degrees from horizontal."""
    scale = scale_of(pixels)
    radius, sigma = MOTION[severity - 1]
    degrees = draw(lambda child, _: child.uniform(-45, 45, ()), pixels, rng)
    return smear(pixels, radius * scale, sigma * scale, degrees)


def zoom_matrix(size: int, zoom: float) -> np.ndarray:
    """Returns the matrix (size, size) that enlarges a line about its middle, and crops it."""
    length = math.ceil(size / zoom)
    start = (size - length) // 2
    part = np.eye(size, dtype=np.float32)[start : start + length]
    enlarged = ndimage.zoom(part, (zoom, 1), order=1)
    start = (len(enlarged) - size) // 2
    return enlarged[start : start + size]


@functools.cache
def zoom_operator(height: int, width: int, largest: float) -> sparse.csr_array:
    """Returns the matrix that averages an image over zooms, with the unzoomed image counted twice.

    A pixel becomes the mean of few others, on a line to the middle of the image.
    """
    zooms = np.arange(1, largest + 0.005, 0.01)
    pairs = [(zoom_matrix(height, zoom), zoom_matrix(width, zoom)) for zoom in (1.0, *zooms)]
    products = (sparse.kron(*map(sparse.coo_array, pair), format="csr") for pair in pairs)
    return sum(products) / len(pairs)


@on_unit_range
def zoom_blur(pixels: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    """Averages over zooms."""
    del rng
    n, height, width, channels = pixels.shape
    columns = pixels.transpose(1, 2, 0, 3).reshape(height * width, -1)
    columns = zoom_operator(height, width, ZOOM[severity - 1]) @ columns
    return columns.reshape(height, width, n, channels).transpose(2, 0, 1, 3)
