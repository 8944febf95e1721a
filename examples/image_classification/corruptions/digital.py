"""Corruptions by cameras and files: contrast, distortion, resolution, compression, colour."""

import io
from collections.abc import Callable

import numpy as np
from PIL import Image
from scipy import ndimage

from examples.image_classification.corruptions.pixels import (
    SIDE,
    draw,
    on_unit_range,
    resize,
    scale_of,
)

CONTRAST = (0.75, 0.5, 0.4, 0.3, 0.15)
# As shares of the side: height and width of the waves, reach of the corners.
ELASTIC = (
    (0, 0, 0.08),
    (0.05, 0.2, 0.07),
    (0.08, 0.06, 0.06),
    (0.1, 0.04, 0.05),
    (0.1, 0.03, 0.03),
)
PIXELATE = (0.95, 0.9, 0.85, 0.75, 0.65)  # of the resolution
JPEG = (80, 65, 58, 50, 40)  # quality
SATURATE = ((0.3, 0), (0.1, 0), (1.5, 0), (2, 0.1), (2.5, 0.2))  # factor, summand


@on_unit_range
def contrast(pixels: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    """Moves each channel towards its mean over the image."""
    del rng
    mean = pixels.mean(axis=(1, 2), keepdims=True)
    return mean + CONTRAST[severity - 1] * (pixels - mean)


def interpolate(pixels: np.ndarray, points: np.ndarray, mode: str) -> np.ndarray:
    """Interpolates each image linearly at its points (n, 2, height, width), rows and columns."""
    result = np.empty_like(pixels)
    for image, new, where in zip(pixels, result, points, strict=True):
        for channel in range(image.shape[-1]):
            plane = image[..., channel]
            new[..., channel] = ndimage.map_coordinates(plane, where, order=1, mode=mode)
    return result


@on_unit_range
def elastic_transform(pixels: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    """Moves three points at random and the image with them, then makes waves.

    Waves are drawn at 32 pixels a side, and enlarged with the image.
    """
    height, width = pixels.shape[1:3]
    waves, sigma, reach = SIDE * np.array(ELASTIC[severity - 1])
    scale = scale_of(pixels)

    def sample(child: np.random.Generator, _: np.ndarray) -> np.ndarray:
        return child.uniform(-1, 1, 6 + 2 * SIDE * SIDE)

    corners, noise = np.split(draw(sample, pixels, rng), [6], axis=1)
    third = min(height, width) // 3
    points = np.array([height // 2, width // 2]) + third * np.array([[1, 1], [1, -1], [-1, -1]])
    moved = points + reach * scale * corners.reshape(-1, 3, 2)
    # The affine map from the moved points back to their origins.
    ones = np.ones((len(moved), 3, 1))
    matrix = np.linalg.solve(np.concatenate([moved, ones], axis=2), points)
    grid = np.indices((height, width)).astype(float)
    homogeneous = np.concatenate([grid, np.ones_like(grid[:1])])
    pixels = interpolate(pixels, np.einsum("khw,nki->nihw", homogeneous, matrix), "mirror")

    noise = noise.reshape(-1, 2, SIDE, SIDE)
    shifts = waves * ndimage.gaussian_filter(noise, sigma, axes=(2, 3))
    return interpolate(pixels, grid + scale * resize(shifts, height, width), "reflect")


def _with_pillow(images: np.ndarray, change: Callable[[Image.Image], Image.Image]) -> np.ndarray:
    result = np.empty_like(images)
    for image, new in zip(images, result, strict=True):
        changed = change(Image.fromarray(image if image.shape[-1] == 3 else image[..., 0]))
        new[...] = np.asarray(changed).reshape(new.shape)
    return result


def pixelate(images: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    """Averages over boxes, to this share of the pixels a side, and goes back to the old size."""
    del rng
    height, width = images.shape[1:3]
    share = PIXELATE[severity - 1]
    small = (max(1, int(share * width)), max(1, int(share * height)))

    def change(image: Image.Image) -> Image.Image:
        box = Image.Resampling.BOX
        return image.resize(small, box).resize((width, height), box)

    return _with_pillow(images, change)


def jpeg_compression(images: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    """Compresses by JPEG and back."""
    del rng

    def change(image: Image.Image) -> Image.Image:
        file = io.BytesIO()
        image.save(file, "JPEG", quality=JPEG[severity - 1])
        return Image.open(file)

    return _with_pillow(images, change)


@on_unit_range
def saturate(pixels: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    """Scales the saturation, the S of HSV, and adds to it. Hue and value stay.

    A pixel without colour has hue 0, red, as the published images have it. Images of one channel
    stay as they are.
    """
    del rng
    factor, summand = SATURATE[severity - 1]
    value = pixels.max(axis=-1, keepdims=True)
    chroma = value - pixels.min(axis=-1, keepdims=True)
    red = np.arange(pixels.shape[-1]) > 0
    # Distance of a channel below the value, in units of the chroma: the hue without angles.
    hue = np.where(chroma > 0, (value - pixels) / np.where(chroma > 0, chroma, 1), red)
    saturation = chroma / np.where(value > 0, value, 1)
    return value * (1 - np.clip(factor * saturation + summand, 0, 1) * hue)
