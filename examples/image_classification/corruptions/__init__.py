"""Corruptions of images by which robustness is measured, as in CIFAR-10-C.

Eighteen of the nineteen of Hendrycks and Dietterich, `Benchmarking Neural Network Robustness to
Common Corruptions and Perturbations <https://arxiv.org/abs/1903.12261>`_, ICLR 2019, in their four
groups. `frost` needs photographs and is left out.

The constants are those of CIFAR-10-C, for images of side 32. For other sides:

- Lengths grow with the shorter side.
- Flakes, drops, waves and the facets of glass are drawn at 32 pixels and enlarged.
- Noise, colours, JPEG's blocks and the share of pixels that `pixelate` keeps do not change.

Not every severity is worse than the one before. `saturate` first fades, then deepens colours.
`elastic_transform` trades one distortion for another. `glass_blur` and `spatter` change kind
between severities 3 and 4.

Accuracies compare with each other, but not exactly with those on the published images: random
draws differ, values are rounded instead of truncated, filters are those of SciPy and Pillow, and
the light on the drops of `spatter` is approximate.
"""

import numpy as np

from examples.image_classification.corruptions import blur, digital, noise, weather
from examples.image_classification.corruptions.pixels import Corruption
from examples.training.check_name import hint

CORRUPTIONS: dict[str, dict[str, Corruption]] = {
    "noise": {
        "gaussian_noise": noise.gaussian_noise,
        "shot_noise": noise.shot_noise,
        "impulse_noise": noise.impulse_noise,
        "speckle_noise": noise.speckle_noise,
    },
    "blur": {
        "defocus_blur": blur.defocus_blur,
        "glass_blur": blur.glass_blur,
        "motion_blur": blur.motion_blur,
        "zoom_blur": blur.zoom_blur,
        "gaussian_blur": blur.gaussian_blur,
    },
    "weather": {
        "snow": weather.snow,
        "fog": weather.fog,
        "brightness": weather.brightness,
        "spatter": weather.spatter,
    },
    "digital": {
        "contrast": digital.contrast,
        "elastic_transform": digital.elastic_transform,
        "pixelate": digital.pixelate,
        "jpeg_compression": digital.jpeg_compression,
        "saturate": digital.saturate,
    },
}
SEVERITIES = range(1, 6)
CHUNK = 250  # images at a time, so that intermediate values fit the cache


def corrupt(
    images: np.ndarray, name: str, severity: int, seed: int | np.random.Generator
) -> np.ndarray:
    """Corrupts images.

    Args:
      images: uint8, of shape (n, height, width, channels), with one channel or three.
      name: A corruption, in any group of `CORRUPTIONS`.
      severity: An integer from 1 to 5.
      seed: Seed of the random draws. Each image has its own draws, which do not depend on later
        images. One `numpy.random.Generator` for all batches of a dataset, in order, gives the
        result of a single call.

    Returns:
      Corrupted images of the same shape and dtype.

    Raises:
      ValueError: The corruption or severity is unknown, or the images have another shape or dtype.
    """
    functions = {key: value for group in CORRUPTIONS.values() for key, value in group.items()}
    if name not in functions:
        why = "it needs photographs, and is left out" if name == "frost" else hint(name, functions)
        raise ValueError(f"unknown corruption {name!r}; {why}")
    if severity not in SEVERITIES:
        raise ValueError(f"severity must be 1, 2, 3, 4 or 5, got {severity!r}")
    if images.dtype != np.uint8:
        raise ValueError(
            f"images must be uint8, got {images.dtype}: corrupt pixels before they are normalized"
        )
    if images.ndim != 4 or images.shape[-1] not in (1, 3):
        raise ValueError(
            "images must have shape (n, height, width, channels) with 1 or 3 channels, "
            f"got {images.shape}"
        )
    rng = np.random.default_rng(seed)
    result = np.empty_like(images)
    for start in range(0, len(images), CHUNK):
        part = slice(start, start + CHUNK)
        result[part] = functions[name](images[part], severity, rng)
    return result
