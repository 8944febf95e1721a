"""The corruptions against their formulas, image by image, and their scaling with the image."""

import colorsys
import io
import itertools
import math

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from examples.image_classification import corruptions
from examples.image_classification.corruptions import (
    CORRUPTIONS,
    blur,
    corrupt,
    digital,
    pixels,
    weather,
)

NAMES = [name for group in CORRUPTIONS.values() for name in group]
FIXED = {"defocus_blur", "zoom_blur", "gaussian_blur", "brightness", "contrast", "pixelate"}
FIXED |= {"jpeg_compression", "saturate"}
SEVERITIES = (1, 2, 3, 4, 5)


def natural(count=6, side=32, seed=0):
    """Returns noise with the spectrum 1/f of photographs, whose channels resemble each other."""
    rng = np.random.default_rng(seed)
    frequency = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.fftfreq(side))
    frequency[0, 0] = 1
    noise = rng.normal(size=(count, side, side, 1)) + 0.5 * rng.normal(size=(count, side, side, 3))
    image = np.fft.ifft2(np.fft.fft2(noise, axes=(1, 2)) / frequency[:, :, None], axes=(1, 2)).real
    image -= image.mean(axis=(1, 2), keepdims=True)
    return np.clip(115 + 50 * image / image.std(), 0, 255).astype(np.uint8)


def constant(value, count=20):
    return np.full((count, 32, 32, 3), value, np.uint8)


def damage(name, severity, images):
    return np.abs(corrupt(images, name, severity, 0).astype(float) - images).mean()


def on_floats(name, pixels, severity, seed=0):
    """Corrupts floats in [0, 1], neither clipped nor rounded."""
    function = next(group[name] for group in CORRUPTIONS.values() if name in group)
    return function.__wrapped__(pixels.astype(np.float32), severity, np.random.default_rng(seed))


def impulse(side=33, count=1):
    pixels = np.zeros((count, side, side, 1), np.float32)
    pixels[:, side // 2, side // 2] = 1
    return pixels


# All of them.


def test_groups_are_those_of_cifar_10_c_without_frost():
    sizes = {group: len(functions) for group, functions in CORRUPTIONS.items()}
    assert sizes == {"noise": 4, "blur": 5, "weather": 4, "digital": 5}
    assert len(set(NAMES)) == 18


@pytest.mark.parametrize("name", NAMES)
def test_shape_is_kept_and_the_seed_gives_the_result(name):
    for images in (natural(2), natural(2, 28)[..., :1], natural(1, 64)[:, :60], natural(2, 8)):
        before = images.copy()
        once, again, other = (corrupt(images, name, 3, seed) for seed in (1, 1, 2))
        assert once.shape == images.shape
        assert once.dtype == np.uint8
        np.testing.assert_array_equal(once, again)
        np.testing.assert_array_equal(images, before)
    if name in FIXED:
        np.testing.assert_array_equal(once, other)
    else:
        assert (once != other).any()


@pytest.mark.parametrize("name", NAMES)
def test_an_image_does_not_depend_on_the_batch(name, monkeypatch):
    images, others = natural(5), natural(5, seed=1)
    whole = corrupt(images, name, 3, 0)
    others[2] = images[2]
    np.testing.assert_array_equal(corrupt(others, name, 3, 0)[2], whole[2])
    np.testing.assert_array_equal(corrupt(images[:2], name, 3, 0), whole[:2])
    rng = np.random.default_rng(0)
    batches = [corrupt(batch, name, 3, rng) for batch in (images[:2], images[2:])]
    np.testing.assert_array_equal(np.concatenate(batches), whole)
    monkeypatch.setattr(corruptions, "CHUNK", 2)
    np.testing.assert_array_equal(corrupt(images, name, 3, 0), whole)


RISES = {  # where it is not all severities; elastic_transform has a test of its own
    "glass_blur": [(1, 4), (3, 5)],
    "spatter": [(1, 2, 3), (4, 5)],
    "saturate": [(1, 2), (3, 4, 5)],
}


@pytest.mark.parametrize("name", sorted({*NAMES} - {"elastic_transform"}))
def test_damage_grows_with_severity(name):
    images = natural(12)
    for severities in RISES.get(name, [SEVERITIES]):
        damages = [damage(name, severity, images) for severity in severities]
        # Motion blur's radii of 6 and 8 differ by what is beyond three sigma.
        assert all(b > 0.999 * a for a, b in itertools.pairwise(damages)), damages
        assert damages[-1] > 1.2 * damages[0] > 0.3, damages


SHAPES = ("gaussian_blur", "defocus_blur", "motion_blur", "zoom_blur")
SHAPES += ("snow", "spatter", "elastic_transform", "glass_blur")


@pytest.mark.parametrize("name", [*SHAPES, "fog"])
def test_corruption_grows_with_the_image(name):
    matrix = ndimage.zoom(np.eye(32), (2, 1), order=1, mode="nearest", grid_mode=True)

    def enlarge(images):
        return np.einsum("hi,wj,nijc->nhwc", matrix, matrix, images, optimize=True)

    small = ndimage.gaussian_filter(natural(4).astype(float), 1.5, axes=(1, 2)).round()
    large = enlarge(small)
    severity = 2 if name == "spatter" else 5
    after = corrupt(large.round().astype(np.uint8), name, severity, 0).astype(float)
    expected = enlarge(corrupt(small.astype(np.uint8), name, severity, 0))
    change = np.abs(expected - large).mean()
    if name in SHAPES:
        assert np.abs(after - expected).mean() < 0.3 * change
    else:
        # Clouds are drawn at the size of the image: only the amount can be compared.
        np.testing.assert_allclose(np.abs(after - large).mean(), change, rtol=0.3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((natural(1), "gausian_blur", 1), "did you mean 'gaussian_blur'.*speckle_noise"),
        ((natural(1), "xyz", 1), "unknown corruption 'xyz'; valid: gaussian_noise"),
        ((natural(1), "frost", 1), "needs photographs"),
        ((natural(1), "snow", 0), "severity.*got 0"),
        ((natural(1), "snow", 6), "severity.*got 6"),
        ((natural(1), "snow", 2.5), "severity.*got 2.5"),
        ((natural(1) / 255, "snow", 1), "uint8, got float64"),
        ((natural(1)[0], "snow", 1), r"\(32, 32, 3\)"),
        ((natural(1)[..., :2], "snow", 1), r"\(1, 32, 32, 2\)"),
    ],
)
def test_errors_name_the_argument(arguments, message):
    with pytest.raises(ValueError, match=message):
        corrupt(*arguments, seed=0)


def test_values_are_clipped():
    for value in (0, 255):
        noisy = corrupt(constant(value, 1), "gaussian_noise", 5, 0).astype(int)
        assert 0 < np.abs(noisy - value).max() < 150
        assert (noisy == value).mean() > 0.4


def test_resize_keeps_the_centers_of_pixels():
    ramp = np.arange(32.0) * np.ones((32, 1))
    expected = np.clip((np.arange(64) + 0.5) / 2 - 0.5, 0, 31) * np.ones((96, 1))
    np.testing.assert_allclose(pixels.resize(ramp, 96, 64), expected)


# Noise.


def test_gaussian_noise_has_its_deviation_in_each_channel():
    for severity, deviation in zip(SEVERITIES, (0.04, 0.06, 0.08, 0.09, 0.10), strict=True):
        noisy = corrupt(constant(128), "gaussian_noise", severity, 0).reshape(-1, 3)
        np.testing.assert_allclose(noisy.std(), 255 * deviation, rtol=0.02)
        np.testing.assert_allclose(noisy.mean(), 128, atol=0.5)
        np.testing.assert_allclose(np.corrcoef(noisy.T), np.eye(3), atol=0.03)


def test_shot_noise_has_a_variance_in_proportion_to_the_mean():
    for severity, photons in zip(SEVERITIES, (500, 250, 100, 75, 50), strict=True):
        for value in (0.1, 0.25, 0.9):
            noisy = on_floats("shot_noise", np.full((20, 32, 32, 3), value), severity)
            np.testing.assert_allclose(noisy.mean(), value, rtol=0.01)
            np.testing.assert_allclose(noisy.var() / value, 1 / photons, rtol=0.03)


def test_impulse_noise_sets_a_share_to_black_and_white():
    for severity, share in zip(SEVERITIES, (0.01, 0.02, 0.03, 0.05, 0.07), strict=True):
        noisy = corrupt(constant(90, 60), "impulse_noise", severity, 0)
        values, counts = np.unique(noisy, return_counts=True)
        np.testing.assert_array_equal(values, [0, 90, 255])
        np.testing.assert_allclose(counts / noisy.size / share, [0.5, 1 / share - 1, 0.5], rtol=0.1)


def test_speckle_noise_has_a_deviation_in_proportion_to_the_value():
    for severity, deviation in zip(SEVERITIES, (0.06, 0.10, 0.12, 0.16, 0.20), strict=True):
        for value in (0, 60, 120):
            noisy = corrupt(constant(value), "speckle_noise", severity, 0)
            np.testing.assert_allclose(noisy.std(), deviation * value, rtol=0.02)


# Blur.


def convolve(image, kernel, mode):
    """Convolves each channel with a kernel that is equal to its mirror image."""
    reach = len(kernel) // 2
    padded = np.pad(image.astype(float), [(reach, reach), (reach, reach), (0, 0)], mode)
    windows = np.lib.stride_tricks.sliding_window_view(padded, kernel.shape, (0, 1))
    return np.einsum("hwcij,ij->hwc", windows, kernel)


def gaussian(sigma, reach):
    line = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
    return np.outer(line, line) / line.sum() ** 2


@pytest.mark.parametrize("side", [32, 64])
def test_gaussian_blur_convolves(side):
    images = natural(1, side)
    for severity, sigma in zip(SEVERITIES, (0.4, 0.6, 0.7, 0.8, 1), strict=True):
        sigma *= side / 32
        expected = convolve(images[0], gaussian(sigma, int(4 * sigma + 0.5)), "edge")
        result = corrupt(images, "gaussian_blur", severity, 0)[0]
        np.testing.assert_allclose(result, expected, atol=0.51)


def test_defocus_blur_convolves_with_a_soft_disk():
    images = natural(1)
    table = [(0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1)]
    for severity, (radius, sigma) in zip(SEVERITIES, table, strict=True):
        rows, columns = np.mgrid[-8:9, -8:9]
        disk = (np.hypot(rows, columns) <= radius).astype(float)[..., None]
        kernel = convolve(disk / disk.sum(), gaussian(sigma, 1), "reflect")[..., 0]
        result = corrupt(images, "defocus_blur", severity, 0)[0]
        np.testing.assert_allclose(result, convolve(images[0], kernel, "reflect"), atol=0.51)


def zoomed(image, zoom):
    """Crops the middle of an image of side 32, enlarges it, and crops again."""
    size = math.ceil(32 / zoom)
    part = slice((32 - size) // 2, (32 - size) // 2 + size)
    large = ndimage.zoom(image[part, part].astype(float), (zoom, zoom, 1), order=1)
    start = (len(large) - 32) // 2
    return large[start : start + 32, start : start + 32]


def test_zoom_blur_averages_zoomed_images():
    image = natural(1)[0]
    for severity, largest in zip(SEVERITIES, (1.06, 1.11, 1.15, 1.20, 1.25), strict=True):
        zooms = np.arange(1, largest + 0.005, 0.01)
        mean = (image + sum(zoomed(image, zoom) for zoom in zooms)) / (len(zooms) + 1)
        result = corrupt(image[None], "zoom_blur", severity, 0)[0]
        np.testing.assert_allclose(result, mean, atol=0.51)


def test_smear_takes_half_a_gaussian_along_the_angle():
    weights = np.exp(-(np.arange(7) ** 2) / (2 * 2.0**2))
    weights /= weights.sum()
    smeared = blur.smear(impulse(count=4), 3, 2, degrees=np.array([0, 90, 180, 45]))[..., 0]
    expected = np.zeros((4, 33, 33))
    for step, weight in enumerate(weights):
        near = math.ceil(step / math.sqrt(2) - 0.5)
        for image, (down, right) in zip(
            expected, [(0, step), (step, 0), (0, -step), (near, near)], strict=True
        ):
            # The pixel takes from there, so the impulse is seen on the other side.
            image[16 - down, 16 - right] += weight
    np.testing.assert_allclose(smeared, expected, atol=1e-6)


def test_motion_blur_has_its_length_and_stays_near_the_horizontal():
    down, right = np.mgrid[-16:16, -16:16]
    table = [(6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5)]
    for severity, (radius, sigma) in zip(SEVERITIES, table, strict=True):
        steps = np.arange(2 * radius + 1)
        weights = np.exp(-(steps**2) / (2 * sigma**2))
        blurred = on_floats("motion_blur", impulse(32, 40), severity)[..., 0]
        # A sixth is the variance of rounding to a pixel, in two directions.
        square = (blurred * (down**2 + right**2)).sum(axis=(1, 2))
        np.testing.assert_allclose(
            square.mean(), 1 / 6 + (weights * steps**2).sum() / weights.sum(), rtol=0.05
        )
        middle = [(blurred * axis).sum(axis=(1, 2)) for axis in (down, right)]
        degrees = np.rad2deg(np.arctan2(middle[0], -middle[1]))
        assert -46 < degrees.min() < -30 < 30 < degrees.max() < 46


def test_moving_pixels_keeps_constant_images():
    for name in [*CORRUPTIONS["blur"], "contrast", "elastic_transform", "pixelate"]:
        np.testing.assert_array_equal(corrupt(constant(77, 5), name, 2, 0), 77)


def test_blurs_keep_the_sum():
    for name in CORRUPTIONS["blur"]:
        if name not in ("zoom_blur", "glass_blur"):
            np.testing.assert_allclose(on_floats(name, impulse(), 5).sum(), 1, rtol=1e-4)


def test_glass_blur_copies_neighbours_from_above_and_the_left(monkeypatch):
    places = np.indices((32, 32)).transpose(1, 2, 0)
    images = np.repeat(np.dstack([places, places[..., :1]])[None], 20, axis=0).astype(np.uint8)
    moves = corrupt(images, "glass_blur", 1, 0)[..., :2].astype(int) - places
    assert not moves[:, :2].any()
    assert not moves[:, :, :2].any()
    pairs, counts = np.unique(moves[:, 2:, 2:].reshape(-1, 2), axis=0, return_counts=True)
    np.testing.assert_array_equal(pairs, [[-1, -1], [-1, 0], [0, -1], [0, 0]])
    np.testing.assert_allclose(counts / counts.sum(), 0.25, atol=0.01)

    # Twice, as the loop over pixels whose swaps copy.
    monkeypatch.setattr(blur, "GLASS", ((0.05, 2),))
    result = corrupt(images[:1], "glass_blur", 1, 0)[0]
    image = images[0].copy()
    offsets = np.random.default_rng(0).spawn(1)[0].integers(-1, 1, (2, 2, 32, 32))
    for time in range(2):
        for row in range(31, 1, -1):
            for column in range(31, 1, -1):
                down, right = offsets[time, :, row, column]
                image[row, column] = image[row + down, column + right]
    np.testing.assert_array_equal(result, image)


def test_glass_blur_smooths_before_and_after():
    image = natural(1)[0]
    top = slice(0, 2)  # where nothing moves
    kernel = gaussian(0.4, 2)
    expected = convolve(convolve(image, kernel, "edge"), kernel, "edge")[top]
    # Of the rows that move, the second smoothing sees one.
    result = corrupt(image[None], "glass_blur", 3, 0)[0, top]
    np.testing.assert_allclose(result[0], expected[0], atol=2)
    assert np.abs(result[0].astype(float) - image[0]).mean() > 2


# Weather.


def test_snow_whitens_and_falls_both_ways(monkeypatch):
    black = np.zeros((100, 32, 32, 1), np.float32)
    flakes = on_floats("snow", black, 1) - 0.05 * 0.5
    np.testing.assert_allclose(flakes, flakes[:, ::-1, ::-1], atol=1e-6)
    value = np.linspace(0.6, 1.5, 10_001)
    density = np.exp(-0.5 * ((value - 0.1) / 0.2) ** 2) / (0.2 * math.sqrt(2 * math.pi))
    mean = (np.minimum(value, 1) * density).mean() * 0.9
    np.testing.assert_allclose(flakes.mean(), 2 * mean, rtol=0.1)
    # A flake falls: rows go on in the next row more than in the next column.
    flakes -= flakes.mean()
    assert (flakes[:, 1:] * flakes[:, :-1]).mean() > 1.5 * (
        flakes[:, :, 1:] * flakes[:, :, :-1]
    ).mean()

    # Without threshold and motion.
    monkeypatch.setattr(weather, "SNOW", ((0.2, 0.1, 2.25, -9, 0, 1, 1),))
    noise = np.random.default_rng(0).spawn(1)[0].standard_normal((32, 32))
    expected = np.minimum(0.2 + 0.1 * zoomed(noise[..., None], 2.25), 1)
    expected += expected[::-1, ::-1]
    np.testing.assert_allclose(on_floats("snow", black[:1], 1)[0], expected, atol=1e-5)

    monkeypatch.setattr(weather, "SNOW", ((0.1, 0.2, 1, 99, 8, 3, 0.8),))
    pixels = natural(1) / 255
    grey = (pixels @ [0.299, 0.587, 0.114])[..., None]
    expected = 0.8 * pixels + 0.2 * np.maximum(pixels, 1.5 * grey + 0.5)
    np.testing.assert_allclose(on_floats("snow", pixels, 1), expected, atol=1e-6)


def diamond_square(noise, decay):
    """Fills a torus point by point; those without a value yet are not in the dictionary."""
    size = len(noise)
    clouds, step, amplitude = {(0, 0): 0.0}, size, 1.0
    while step > 1:
        half = step // 2
        starts = [(i, j) for i in range(0, size, step) for j in range(0, size, step)]
        diagonal = [(-half, -half), (-half, half), (half, -half), (half, half)]
        straight = [(-half, 0), (half, 0), (0, -half), (0, half)]
        for (down, right), around in (
            ((half, half), diagonal),
            ((0, half), straight),
            ((half, 0), straight),
        ):
            new = {}
            for i, j in starts:
                i, j = i + down, j + right
                near = [clouds[(i + a) % size, (j + b) % size] for a, b in around]
                new[i, j] = sum(near) / 4 + amplitude * noise[i, j]
            clouds |= new
        step, amplitude = half, amplitude / decay**2
    values = np.array([[clouds[i, j] for j in range(size)] for i in range(size)])
    return (values - values.min()) / (values.max() - values.min())


def test_plasma_matches_diamond_square():
    noise = np.random.default_rng(0).uniform(-1, 1, (2, 16, 16))
    expected = [diamond_square(layer, 1.75) for layer in noise]
    np.testing.assert_allclose(weather.plasma(noise, 1.75), expected, rtol=1e-12)


def test_fog_keeps_the_brightest_value():
    table = [(0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75)]
    for severity, (amount, decay) in zip(SEVERITIES, table, strict=True):
        foggy = on_floats("fog", np.full((3, 32, 32, 3), 0.4), severity)
        np.testing.assert_allclose(foggy.max(axis=(1, 2, 3)), 0.4, rtol=1e-5)
        np.testing.assert_allclose(foggy.min(axis=(1, 2, 3)), 0.16 / (0.4 + amount), rtol=1e-5)
        noise = np.random.default_rng(0).spawn(1)[0].uniform(-1, 1, (32, 32))
        clouds = weather.plasma(noise[None], decay)[0]
        expected = (0.4 + amount * clouds) * 0.4 / (0.4 + amount)
        np.testing.assert_allclose(foggy[0, :, :, 1], expected, rtol=1e-4)


COLORS = np.random.default_rng(3).integers(0, 256, (1, 8, 8, 3)).astype(np.uint8)
COLORS[0, 0, :5] = [[0, 0, 0], [255, 255, 255], [90, 90, 90], [255, 0, 0], [0, 3, 3]]


def in_hsv(change):
    """Changes the test's colours pixel by pixel in HSV."""
    pixels = [colorsys.rgb_to_hsv(*pixel) for pixel in COLORS.reshape(-1, 3) / 255]
    changed = [colorsys.hsv_to_rgb(*change(*pixel)) for pixel in pixels]
    return 255 * np.reshape(changed, COLORS.shape)


def test_brightness_adds_to_the_value():
    for severity, more in zip(SEVERITIES, (0.05, 0.1, 0.15, 0.2, 0.3), strict=True):
        expected = in_hsv(lambda h, s, v, more=more: (h, s, min(v + more, 1)))
        result = corrupt(COLORS, "brightness", severity, 0)
        np.testing.assert_allclose(result, expected, atol=0.51)


def test_equalize_spreads_the_distribution():
    layers = np.array([[[3, 3], [4, 6]], [[2, 2], [2, 2]]])
    result = weather.equalize(layers, levels=7)
    np.testing.assert_array_equal(result, [[[0, 0], [128, 255]], [[0, 0], [0, 0]]])


def test_water_is_turquoise_light_on_drops():
    drop = np.zeros((2, 32, 32))
    drop[0, 8:24, 8:24] = 0.8
    light = weather.highlights(drop)
    assert not light[1].any()
    assert not light[0][drop[0] == 0].any()
    assert light.max() == 1
    assert light[0, 8:16, 8:16].mean() > 3 * light[0, 16:24, 16:24].mean()

    for severity, (mean, deviation, sigma, threshold) in enumerate(
        [(0.62, 0.1, 0.7, 0.7), (0.65, 0.1, 0.8, 0.7), (0.65, 0.3, 1, 0.69)], start=1
    ):
        lit = on_floats("spatter", np.zeros((60, 32, 32, 3)), severity)
        np.testing.assert_allclose(lit.max(axis=(1, 2)), [np.divide((175, 238, 238), 510)] * 60)
        deviation *= np.sqrt((gaussian(sigma, int(4 * sigma + 0.5)) ** 2).sum())
        wet = 0.5 * math.erfc((threshold - mean) / deviation / math.sqrt(2))
        share = (lit[..., 0] > 0).mean()
        # At the edge, noise is smoothed less.
        assert 0.4 * wet < share < 1.2 * wet


def test_mud_covers_by_brown():
    brown = np.divide((63, 42, 20), 255)
    shares = []
    for severity in (4, 5):
        pixels = on_floats("spatter", np.ones((60, 32, 32, 3)), severity)
        cover = (1 - pixels) / (1 - brown)
        np.testing.assert_allclose(cover, cover[..., :1] * np.ones(3), atol=1e-5)
        assert cover[cover > 1e-5].min() > 0.79
        assert cover.max() <= 1.00001
        shares.append((cover[..., 0] > 0.5).mean())
    assert 0.005 < shares[0] < shares[1] < 0.2


# Digital.


def test_contrast_moves_each_channel_to_its_mean():
    images = natural(2)
    mean = images.mean(axis=(1, 2), keepdims=True)
    for severity, share in zip(SEVERITIES, (0.75, 0.5, 0.4, 0.3, 0.15), strict=True):
        result = corrupt(images, "contrast", severity, 0)
        np.testing.assert_allclose(result, mean + share * (images - mean), atol=0.51)


def test_saturate_changes_the_saturation_alone():
    table = [(0.3, 0), (0.1, 0), (1.5, 0), (2, 0.1), (2.5, 0.2)]
    for severity, (factor, more) in zip(SEVERITIES, table, strict=True):
        expected = in_hsv(lambda h, s, v, f=factor, m=more: (h, min(f * s + m, 1), v))
        result = corrupt(COLORS, "saturate", severity, 0)
        np.testing.assert_allclose(result, expected, atol=0.51)


def test_pixelate_averages_blocks(monkeypatch):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (1, 32, 32, 3)).astype(np.uint8)
    for severity, side in zip(SEVERITIES, (30, 28, 27, 24, 20), strict=True):
        result = corrupt(images, "pixelate", severity, 0)[0].astype(int)
        for axis in (0, 1):
            changes = np.diff(result, axis=axis).any(axis=(1 - axis, 2))
            assert changes.sum() == side - 1
    monkeypatch.setattr(digital, "PIXELATE", (0.25,))
    means = images.reshape(1, 8, 4, 8, 4, 3).mean(axis=(2, 4))
    expected = means.repeat(4, axis=1).repeat(4, axis=2)
    # Pillow rounds rows, then columns.
    np.testing.assert_allclose(corrupt(images, "pixelate", 1, 0), expected, atol=1)


@pytest.mark.parametrize("channels", [1, 3])
def test_jpeg_compression_matches_pillow(channels):
    images = natural(2)[..., :channels]
    for severity, quality in zip(SEVERITIES, (80, 65, 58, 50, 40), strict=True):
        result = corrupt(images, "jpeg_compression", severity, 0)
        for image, compressed in zip(images, result, strict=True):
            file = io.BytesIO()
            Image.fromarray(image.squeeze()).save(file, format="JPEG", quality=quality)
            expected = np.asarray(Image.open(file)).reshape(image.shape)
            np.testing.assert_array_equal(compressed, expected)


ELASTIC = np.array(
    [(0, 0, 2.56), (1.6, 6.4, 2.24), (2.56, 1.92, 1.92), (3.2, 1.28, 1.6), (3.2, 0.96, 0.96)]
)
PLACES = np.indices((32, 32)).transpose(1, 2, 0)


def elastic_sources(monkeypatch, waves, sigma, reach):
    """Returns where the pixels of forty images come from."""
    monkeypatch.setattr(digital, "ELASTIC", np.array([(waves, sigma, reach)]) / 32)
    ramps = np.dstack([PLACES, PLACES[..., :1]])[None].repeat(40, axis=0) / 32
    return 32 * on_floats("elastic_transform", ramps, 1)[..., :2]


def test_elastic_transform_moves_three_points(monkeypatch):
    np.testing.assert_allclose(32 * np.array(digital.ELASTIC), ELASTIC)
    inside = slice(10, 22), slice(10, 22)  # comes from within the image
    homogeneous = np.dstack([PLACES, np.ones((32, 32, 1))])[inside].reshape(-1, 3)
    corners = np.array([[26, 26], [26, 6], [6, 6]])
    for reach in ELASTIC[:, 2]:
        moves = []
        for source in elastic_sources(monkeypatch, 0, 0, reach):
            flat = source[inside].reshape(-1, 2)
            matrix, *_ = np.linalg.lstsq(homogeneous, flat, rcond=None)
            np.testing.assert_allclose(homogeneous @ matrix, flat, atol=0.1)
            # The fit tells where a point comes from; its inverse, where the corners go.
            moves.append(np.linalg.solve(matrix[:2].T, (corners - matrix[2]).T).T - corners)
        assert np.abs(moves).max() < 1.02 * reach
        np.testing.assert_allclose(np.std(moves), reach / math.sqrt(3), rtol=0.08)


def test_elastic_transform_makes_waves(monkeypatch):
    inside = slice(4, 28)  # where no wave leaves the image
    for waves, sigma, _ in ELASTIC[1:]:
        kernel = gaussian(sigma, int(4 * sigma + 0.5))
        spread = waves * math.sqrt((kernel**2).sum() / 3)
        moves = (elastic_sources(monkeypatch, waves, sigma, 0) - PLACES)[:, inside, inside]
        np.testing.assert_allclose(moves.std(), spread, rtol=0.15)
        along = [
            np.corrcoef(moves[:, 1:, :, i].ravel(), moves[:, :-1, :, i].ravel()) for i in (0, 1)
        ]
        neighbours = (kernel[1:] * kernel[:-1]).sum() / (kernel**2).sum()
        np.testing.assert_allclose([c[0, 1] for c in along], neighbours, rtol=0.05)
