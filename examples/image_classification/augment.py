"""Random augmentation of a batch of normalized images, on the device.

Every image has its own draws from the key of the batch, whichever device holds it. The fill value
zero is the mean, since images are normalized.
"""

import functools
import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from examples.training.check_name import check_name

Augmentation = Callable[..., jax.Array]  # from a key and images to images


def make_augmentation(names: Sequence[str]) -> Augmentation:
    """Returns a function that applies augmentations one after the other.

    It maps a key and normalized images (images, height, width, channels) to images of the same
    shape. Call it within `jax.jit`.

    Args:
      names: Names of `AUGMENTATIONS` in the order in which they apply. Some take a number, as in
        "cutout=0.5" for half of the images.

    Raises:
      ValueError: The augmentation is unknown, or the number is not above 0 and at most 1.
    """
    functions = [_parse(name) for name in names]

    def augment(key: jax.Array, images: jax.Array) -> jax.Array:
        for i, function in enumerate(functions):
            images = function(jax.random.fold_in(key, i), images)
        return images

    return augment


def _parse(text: str) -> Augmentation:
    name, equals, number = text.partition("=")
    check_name("augmentation", name, AUGMENTATIONS)
    if not equals:
        return AUGMENTATIONS[name]
    if name not in WITH_NUMBER:
        raise ValueError(f"augmentation {text!r}: {name} takes no number")
    try:
        value = float(number)
    except ValueError:
        value = math.nan
    if not 0 < value <= 1:
        raise ValueError(f"augmentation {text!r}: the number must be above 0 and at most 1")
    return functools.partial(AUGMENTATIONS[name], **{WITH_NUMBER[name]: value})


def crop(key: jax.Array, images: jax.Array) -> jax.Array:
    """Shifts by up to an eighth of the side, 4 of 32 pixels, and fills with zeros."""
    padding = min(images.shape[1:3]) // 8
    padded = jnp.pad(images, [(0, 0), (padding, padding), (padding, padding), (0, 0)])
    corners = _integers(_uniform(key, images, 2), 2 * padding + 1)

    def window(image: jax.Array, corner: jax.Array) -> jax.Array:
        return jax.lax.dynamic_slice(image, (*corner, 0), images.shape[1:])

    return jax.vmap(window)(padded, corners)


def flip(key: jax.Array, images: jax.Array) -> jax.Array:
    """Mirrors half of the images, left to right."""
    mirrored = _uniform(key, images, 1) < 0.5
    return jnp.where(mirrored[:, :, None, None], images[:, :, ::-1], images)


def cutout(key: jax.Array, images: jax.Array, share: float = 1.0) -> jax.Array:
    """Sets a square of half the side to zero, 16 of 32 pixels, in a share of the images.

    Its centre is anywhere in the image, and the square is clipped at the border.

    References:
      DeVries and Taylor, `Improved Regularization of Convolutional Neural Networks with Cutout
      <https://arxiv.org/abs/1708.04552>`_, 2017
    """
    side = min(images.shape[1:3]) // 2
    shape = jnp.array(images.shape[1:3])
    draws = _uniform(key, images, 3)
    centers = _integers(draws[:, :2], shape)
    return _erase(images, centers - side // 2, jnp.where(draws[:, 2:] < share, side, 0))


def resized_crop(key: jax.Array, images: jax.Array, smallest: float = 0.08) -> jax.Array:
    """Enlarges a random part to the size of the image, bilinearly.

    The part has at least the share `smallest` of the area and a ratio of width to height of 3/4 to
    4/3. The defaults are those of torchvision's RandomResizedCrop.

    References:
      Szegedy et al., `Going Deeper with Convolutions <https://arxiv.org/abs/1409.4842>`_, 2015
    """
    draws = _uniform(key, images, 22)
    corners, sizes, fits = _boxes(draws, images.shape, area=(smallest, 1.0), ratio=(3 / 4, 4 / 3))
    shape = jnp.array(images.shape[1:3])
    corners, sizes = jnp.where(fits, corners, 0), jnp.where(fits, sizes, shape)
    rows, columns = (
        _interpolation(corners[:, axis, None], sizes[:, axis, None], images.shape[1 + axis])
        for axis in (0, 1)
    )
    # In the default precision of GPUs and TPUs pixels would lose half of their digits.
    return jnp.einsum(
        "nir,njq,nrqc->nijc", rows, columns, images, precision=jax.lax.Precision.HIGHEST
    )


def erasing(key: jax.Array, images: jax.Array, share: float = 0.5) -> jax.Array:
    """Sets a random rectangle to zero, in a share of the images.

    It has 2 to 33 % of the area and a ratio of height to width of 0.3 to 3.3, the defaults of
    torchvision's RandomErasing. The paper has areas of up to 40 % and random pixels.

    References:
      Zhong et al., `Random Erasing Data Augmentation <https://arxiv.org/abs/1708.04896>`_, 2020
    """
    draws = _uniform(key, images, 23)
    corners, sizes, fits = _boxes(draws, images.shape, area=(0.02, 0.33), ratio=(1 / 3.3, 1 / 0.3))
    erased = fits & (draws[:, 22:] < share)
    return _erase(images, corners, jnp.where(erased, sizes, 0))


AUGMENTATIONS: dict[str, Augmentation] = {
    "crop": crop,
    "flip": flip,
    "cutout": cutout,
    "resized_crop": resized_crop,
    "erasing": erasing,
}
WITH_NUMBER = {"cutout": "share", "resized_crop": "smallest", "erasing": "share"}


def _erase(images: jax.Array, corners: jax.Array, sizes: jax.Array) -> jax.Array:
    inside = []
    for axis, length in enumerate(images.shape[1:3]):
        distance = jnp.arange(length) - corners[:, axis, None]
        inside.append((distance >= 0) & (distance < sizes[:, axis, None]))
    mask = inside[0][:, :, None] & inside[1][:, None, :]
    return jnp.where(mask[..., None], jnp.zeros_like(images), images)


def _uniform(key: jax.Array, images: jax.Array, count: int) -> jax.Array:
    """Draws all numbers of every image in one call, since each call compiles for half a second."""
    return jax.random.uniform(key, (len(images), count), jnp.float32)


def _integers(draws: jax.Array, stop: jax.typing.ArrayLike) -> jax.Array:
    return (draws * stop).astype(jnp.int32)


def _boxes(
    draws: jax.Array, shape: tuple[int, ...], area: tuple[float, float], ratio: tuple[float, float]
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Draws a box per image, the first of ten that fits: corner, size, and whether any fits.

    Args:
      draws: Uniform numbers, of which it takes 22 per image.
      shape: Shape of the images.
      area: Smallest and largest area, as a share of the image.
      ratio: Smallest and largest ratio of width to height, uniform in its logarithm.
    """
    limits = jnp.array(shape[1:3])
    areas = shape[1] * shape[2] * (area[0] + draws[:, :10] * (area[1] - area[0]))
    low, high = map(math.log, ratio)
    ratios = jnp.exp(low + draws[:, 10:20] * (high - low))
    sizes = jnp.stack([jnp.sqrt(areas / ratios), jnp.sqrt(areas * ratios)], axis=-1)
    sizes = jnp.round(sizes).astype(jnp.int32)
    fitting = jnp.all((sizes > 0) & (sizes <= limits), axis=-1)
    first = fitting.argmax(axis=1)
    sizes = jnp.take_along_axis(sizes, first[:, None, None], axis=1)[:, 0]
    corners = _integers(draws[:, 20:22], limits - sizes + 1)
    return corners, sizes, fitting.any(axis=1, keepdims=True)


def _interpolation(corner: jax.Array, size: jax.Array, length: int) -> jax.Array:
    """Returns matrices that enlarge `size` of `length` pixels to all of them, bilinearly."""
    centers = (jnp.arange(length) + 0.5) * size / length - 0.5
    sources = corner + jnp.clip(centers, 0, size - 1)  # ignores pixels around the box
    return jnp.maximum(0.0, 1.0 - jnp.abs(sources[:, :, None] - jnp.arange(length)))
