"""Shared by the corruptions: the unit range, random draws per image, and scaling with size."""

import functools
from collections.abc import Callable

import numpy as np
from scipy import ndimage

Corruption = Callable[[np.ndarray, int, np.random.Generator], np.ndarray]

SIDE = 32  # of the images for which lengths are given
LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601


def on_unit_range(corruption: Corruption) -> Corruption:
    """Applies a corruption of float32 pixels in [0, 1] to uint8 pixels, clipped and rounded."""

    @functools.wraps(corruption)
    def of_bytes(images: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
        pixels = corruption(images.astype(np.float32) / 255, severity, rng)
        return np.rint(np.clip(pixels, 0, 1) * 255).astype(np.uint8)

    return of_bytes


def draw(
    sample: Callable[[np.random.Generator, np.ndarray], np.ndarray],
    images: np.ndarray,
    rng: np.random.Generator,
) -> np.ndarray:
    """Stacks `sample(child, image)` over the images, each with the next child of the generator.

    The draws of an image depend on the seed and on the number of images before it, but not on other
    images or the size of the batch.
    """
    children = rng.spawn(len(images))
    return np.stack([sample(child, image) for child, image in zip(children, images, strict=True)])


def scale_of(images: np.ndarray) -> float:
    """Returns the shorter side of the images in units of 32 pixels."""
    return min(images.shape[1:3]) / SIDE


def resize(layers: np.ndarray, height: int, width: int) -> np.ndarray:
    """Scales layers (..., side, side) to (..., height, width) by linear interpolation."""
    identity = np.eye(layers.shape[-1], dtype=layers.dtype)
    rows, columns = (
        ndimage.zoom(identity, (size / len(identity), 1), order=1, mode="nearest", grid_mode=True)
        for size in (height, width)
    )
    return rows @ layers @ columns.T


def tint(rgb: tuple[int, int, int], channels: int) -> np.ndarray:
    """Returns a colour in [0, 1] with the channels of the images, three or its grey value."""
    color = np.array(rgb, np.float32) / 255
    return color if channels == 3 else np.atleast_1d(color @ LUMA)
