"""Weather, except frost, which needs photographs. Layers are drawn at 32 x 32 pixels."""

import numpy as np
from scipy import ndimage

from examples.image_classification.corruptions.blur import smear, smooth, zoom_matrix
from examples.image_classification.corruptions.pixels import (
    LUMA,
    SIDE,
    draw,
    on_unit_range,
    resize,
    tint,
)

# Mean, deviation, zoom, threshold, radius and sigma of the motion, share of the image.
SNOW = (
    (0.1, 0.2, 1, 0.6, 8, 3, 0.95),
    (0.1, 0.2, 1, 0.5, 10, 4, 0.9),
    (0.15, 0.3, 1.75, 0.55, 10, 4, 0.9),
    (0.25, 0.3, 2.25, 0.6, 12, 6, 0.85),
    (0.3, 0.3, 1.25, 0.65, 14, 12, 0.8),
)
FOG = ((0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75))  # amount, decay per octave
BRIGHTNESS = (0.05, 0.1, 0.15, 0.2, 0.3)
# Mean, deviation, sigma, threshold; then the strength of water, or the sigma of mud.
SPATTER = (
    (0.62, 0.1, 0.7, 0.7, 0.5),
    (0.65, 0.1, 0.8, 0.7, 0.5),
    (0.65, 0.3, 1, 0.69, 0.5),
    (0.65, 0.1, 0.7, 0.69, 0.6),
    (0.65, 0.1, 0.5, 0.68, 0.6),
)
WATER, MUD = (175, 238, 238), (63, 42, 20)
EMBOSS = np.array([[-2, -1, 0], [-1, 1, 1], [0, 1, 2]])
FARTHEST = 20  # pixels from the outline of a drop, beyond which its light is the same


@on_unit_range
def snow(pixels: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    """Whitens the image, and adds flakes that fall to the left and, turned, to the right."""
    mean, deviation, zoom, threshold, radius, sigma, share = SNOW[severity - 1]

    def sample(child: np.random.Generator, _: np.ndarray) -> np.ndarray:
        flakes = mean + deviation * child.standard_normal(SIDE * SIDE)
        return np.append(flakes, child.uniform(-135, -45)).astype(np.float32)

    flakes, degrees = np.split(draw(sample, pixels, rng), [SIDE * SIDE], axis=1)
    flakes = flakes.reshape(-1, SIDE, SIDE)
    enlarge = zoom_matrix(SIDE, zoom)
    flakes = enlarge @ flakes @ enlarge.T
    flakes = np.where(flakes < threshold, 0, np.minimum(flakes, 1))
    flakes = resize(smear(flakes, radius, sigma, degrees[:, 0]), *pixels.shape[1:3])[..., None]
    grey = pixels if pixels.shape[-1] == 1 else (pixels @ LUMA)[..., None]
    whitened = np.maximum(pixels, 1.5 * grey + 0.5)
    return share * pixels + (1 - share) * whitened + flakes + flakes[:, ::-1, ::-1]


def plasma(layers: np.ndarray, decay: float) -> np.ndarray:
    """Turns uniform noise into clouds in [0, 1] by the diamond-square algorithm, on a torus.

    Args:
      layers: Noise in [-1, 1] of shape (n, size, size), where size is a power of two.
      decay: Halving the distance between points divides the noise by the square of this.
    """
    clouds = np.zeros_like(layers)
    step, amplitude = layers.shape[1], 1.0
    while step > 1:
        half = step // 2
        corners = clouds[:, ::step, ::step]
        squares = corners + np.roll(corners, -1, axis=1)
        squares = squares + np.roll(squares, -1, axis=2)
        middle = (slice(None), slice(half, None, step), slice(half, None, step))
        clouds[middle] = squares / 4 + amplitude * layers[middle]
        middles = clouds[middle]
        for axis, edge in ((2, np.s_[:, ::step, half::step]), (1, np.s_[:, half::step, ::step])):
            ends = corners + np.roll(corners, -1, axis=axis)
            sides = middles + np.roll(middles, 1, axis=3 - axis)
            clouds[edge] = (ends + sides) / 4 + amplitude * layers[edge]
        step, amplitude = half, amplitude / decay**2
    clouds -= clouds.min(axis=(1, 2), keepdims=True)
    return clouds / clouds.max(axis=(1, 2), keepdims=True)


@on_unit_range
def fog(pixels: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    """Adds clouds, and scales the image back to its brightness."""
    amount, decay = FOG[severity - 1]
    _, height, width, _ = pixels.shape
    size = 1 << (max(height, width) - 1).bit_length()
    noise = draw(lambda child, _: child.uniform(-1, 1, (size, size)), pixels, rng)
    clouds = plasma(noise.astype(np.float32), decay)[:, :height, :width, None]
    brightest = pixels.max(axis=(1, 2, 3), keepdims=True)
    return (pixels + amount * clouds) * brightest / (brightest + amount)


@on_unit_range
def brightness(pixels: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    """Adds to the value, the V of HSV. Hue and saturation stay, so the pixel is scaled."""
    del rng
    value = pixels.max(axis=-1, keepdims=True)
    raised = np.minimum(value + BRIGHTNESS[severity - 1], 1)
    return np.where(value > 0, pixels * raised / np.where(value > 0, value, 1), raised)


def equalize(layers: np.ndarray, levels: int) -> np.ndarray:
    """Spreads the integers below `levels` so that their distribution over [0, 255] is even."""
    counts = np.stack([(layers == level).sum(axis=(1, 2)) for level in range(levels)], axis=1)
    total = np.cumsum(counts, axis=1)
    darkest = layers.min(axis=(1, 2))[:, None]
    first = np.take_along_axis(total, darkest, axis=1)
    shares = (total - first) / np.maximum(total[:, -1:] - first, 1)
    image = np.arange(len(layers))[:, None, None]
    return np.rint(255 * shares)[image, layers]


def highlights(drops: np.ndarray) -> np.ndarray:
    """Returns the light reflected by the drops, at most 1, more at the upper left of each.

    Embosses the distance from the outline. The published images find outlines by Canny's detector,
    which here is the pixels of a drop next to one that is dry.
    """
    wet = drops > 0
    outline = wet & ~ndimage.binary_erosion(wet, np.ones((1, 3, 3)), border_value=1)
    # Other images of the batch are farther than any pixel of the same.
    far = ndimage.distance_transform_edt(~outline, sampling=(1e6, 1, 1))
    far = ndimage.uniform_filter(np.minimum(far, FARTHEST), (1, 3, 3), mode="mirror")
    relief = equalize(far.astype(int), FARTHEST + 1)
    relief = np.clip(ndimage.correlate(relief, EMBOSS[None], mode="mirror"), 0, 255)
    light = drops * ndimage.uniform_filter(relief, (1, 3, 3), mode="mirror")
    brightest = light.max(axis=(1, 2), keepdims=True)
    return light / np.where(brightest > 0, brightest, 1)


@on_unit_range
def spatter(pixels: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    """Splashes water on the lens at severities 1 to 3, and mud at 4 and 5."""
    mean, deviation, sigma, threshold, last = SPATTER[severity - 1]
    _, height, width, channels = pixels.shape
    noise = draw(lambda child, _: child.standard_normal((SIDE, SIDE)), pixels, rng)
    drops = smooth(mean + deviation * noise, sigma)
    if severity <= 3:
        light = last * highlights(np.where(drops < threshold, 0, drops))
        light = resize(light, height, width)[..., None]
        return pixels + light * tint(WATER, channels)
    cover = smooth((drops > threshold).astype(np.float32), last)
    cover = resize(np.where(cover < 0.8, 0, cover), height, width)[..., None]
    return (1 - cover) * pixels + cover * tint(MUD, channels)
