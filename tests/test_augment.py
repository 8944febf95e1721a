"""Augmentations against NumPy and Pillow."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from PIL import Image
from test_devices import on_eight_devices

from examples.image_classification.augment import AUGMENTATIONS, make_augmentation

KEY = jax.random.key(0)
QUICK = {"xla_backend_optimization_level": 0}  # compiling takes most of the time


@functools.cache
def compiled(*names):
    return jax.jit(make_augmentation(names), compiler_options=QUICK)


def augment(names, images, key=KEY):
    """Returns the augmented images as NumPy."""
    return np.asarray(compiled(*names)(key, jnp.asarray(images)))


def repeated(image, count):
    return np.broadcast_to(image, (count, *image.shape)).astype(np.float32)


def counting(side, channels):
    """An image in which no two pixels are alike, and none is zero."""
    return 1 + np.arange(side * side * channels, dtype=np.float32).reshape(side, side, channels)


def coordinates(height, width):
    """An image whose first channel is the row, and whose second is the column."""
    return np.stack(np.mgrid[:height, :width], axis=-1).astype(np.float32)


def rectangles(images):
    """The rectangle of zeros in each image of ones, (start, stop) per axis."""
    found = []
    for mask in (images == 0).all(axis=-1):
        spans = [np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0)]
        spans = [(span[0], span[-1] + 1) if span.size else (0, 0) for span in spans]
        expected = np.zeros_like(mask)
        expected[slice(*spans[0]), slice(*spans[1])] = True
        np.testing.assert_array_equal(mask, expected)
        found.append(spans)
    assert set(np.unique(images)) <= {0.0, 1.0}
    return np.array(found)


def crop_boxes(images):
    """(start, stop) per axis of the part that `resized_crop` enlarged, from `coordinates`."""
    ends = [images[:, 0, 0, :2], images[:, -1, -1, :2] + 1]
    return np.rint(np.stack(ends, axis=-1)).astype(int)


# --- Crop, flip, cutout ---


def test_crops_are_uniform_over_windows_of_the_padded_image():
    image = counting(32, 3)
    padded = np.pad(image, [(4, 4), (4, 4), (0, 0)])
    windows = {
        padded[y : y + 32, x : x + 32].tobytes(): 9 * y + x for y in range(9) for x in range(9)
    }
    drawn = [windows[crop.tobytes()] for crop in augment(["crop"], repeated(image, 4050))]
    counts = np.bincount(drawn, minlength=81)
    assert counts.min() > 20  # of 50 each
    assert np.sum((counts - 50) ** 2 / 50) < 130  # chi-square of 80 degrees: one in 3,000


def test_padding_is_an_eighth_of_the_side():
    image = counting(8, 1)
    crops = augment(["crop"], repeated(image, 200))
    lost = 64 - np.count_nonzero(crops, axis=(1, 2, 3))
    assert set(lost) == {0, 8, 15}  # none, a row or a column, both


def test_half_of_the_images_are_mirrored_left_to_right():
    image = counting(6, 2)
    flipped = augment(["flip"], repeated(image, 1000))
    mirrored = (flipped == image[:, ::-1]).all(axis=(1, 2, 3))
    assert ((flipped == image).all(axis=(1, 2, 3)) | mirrored).all()
    assert 440 < mirrored.sum() < 560


def test_cutout_erases_squares_clipped_at_the_border():
    spans = rectangles(augment(["cutout"], np.ones((3200, 32, 32, 3), np.float32)))
    possible = [(max(center - 8, 0), min(center + 8, 32)) for center in range(32)]
    for axis in range(2):
        counts = [np.sum((spans[:, axis] == span).all(axis=1)) for span in possible]
        assert sum(counts) == 3200
        assert np.sum((np.array(counts) - 100) ** 2 / 100) < 65  # 31 degrees: one in 3,000
    assert abs(np.corrcoef(spans[:, 0, 0], spans[:, 1, 0])[0, 1]) < 0.05


def test_a_number_is_the_share_of_images_or_the_smallest_area():
    ones = np.ones((2000, 16, 16, 3), np.float32)
    for name, share in [("cutout=0.5", 0.5), ("cutout=1", 1.0), ("erasing=0.2", 0.2)]:
        erased = (augment([name], ones) == 0).any(axis=(1, 2, 3))
        assert np.mean(erased) == pytest.approx(share, abs=0.04 * (share < 1)), name
    crops = augment(["resized_crop=0.8"], repeated(coordinates(64, 64), 500))
    areas = np.prod(np.diff(crop_boxes(crops), axis=-1)[..., 0], axis=1) / 64**2
    assert 0.78 < areas.min() < 0.82
    assert areas.max() > 0.95


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("flip=0.5", "flip takes no number"),
        ("cutout=2", "above 0 and at most 1"),
        ("cutout=half", "above 0 and at most 1"),
    ],
)
def test_an_invalid_number_raises(name, message):
    with pytest.raises(ValueError, match=message):
        make_augmentation([name])


# --- Resized crop, erasing ---


def test_a_resized_crop_matches_pillow():
    pixels = np.random.default_rng(0).normal(size=(16, 16)).astype(np.float32)
    constant = np.full_like(pixels, 0.7)
    image = np.concatenate([coordinates(16, 16), np.stack([pixels, constant], axis=-1)], axis=-1)
    crops = augment(["resized_crop"], repeated(image, 40))
    np.testing.assert_allclose(crops[..., 3], 0.7, rtol=1e-6)
    for (rows, columns), crop in zip(crop_boxes(crops), crops[..., 2], strict=True):
        part = Image.fromarray(pixels[slice(*rows), slice(*columns)])
        expected = part.resize((16, 16), Image.Resampling.BILINEAR)
        np.testing.assert_allclose(crop, np.asarray(expected), atol=1e-5)


def test_areas_and_ratios_of_resized_crops():
    crops = augment(["resized_crop"], repeated(coordinates(64, 64), 2000))
    heights, widths = np.diff(crop_boxes(crops), axis=-1)[..., 0].T
    areas, ratios = heights * widths / 64**2, widths / heights
    # Sides are rounded to pixels, by up to half a pixel of 18.
    assert 0.075 < areas.min() < 0.1
    assert 0.9 < areas.max() <= 1.0
    assert 0.70 < ratios.min() < 0.78
    assert 1.28 < ratios.max() < 1.42
    # Small ones fit always: they are uniform between any two areas.
    assert np.mean(areas < 0.29) / np.mean(areas < 0.5) == pytest.approx(0.5, abs=0.04)
    assert np.mean(np.log(ratios)) == pytest.approx(0.0, abs=0.02)
    tops, lefts = crop_boxes(crops)[..., 0].T
    small = heights < 32
    assert (tops[small].min(), lefts[small].min()) == (0, 0)
    assert (tops + heights)[small].max() == (lefts + widths)[widths < 32].max() == 64
    assert abs(np.corrcoef(tops[small], lefts[small])[0, 1]) < 0.15
    assert np.mean((tops + 0.5)[small] / (65 - heights)[small]) == pytest.approx(0.5, abs=0.04)


def test_a_resized_crop_that_does_not_fit_is_the_whole_image():
    image = coordinates(2, 64)
    crops = augment(["resized_crop"], repeated(image, 20))
    np.testing.assert_array_equal(crops, repeated(image, 20))


def test_erased_areas_and_ratios():
    spans = rectangles(augment(["erasing"], np.ones((2400, 64, 64, 1), np.float32)))
    sizes = np.diff(spans, axis=-1)[..., 0]
    erased = sizes[:, 0] > 0
    assert 1110 < erased.sum() < 1290
    heights, widths = sizes[erased].T
    areas, ratios = heights * widths / 64**2, heights / widths
    assert 0.018 < areas.min() < 0.03
    assert 0.31 < areas.max() < 0.34
    assert 0.27 < ratios.min() < 0.33
    assert 3.0 < ratios.max() < 3.6
    assert areas.mean() == pytest.approx(0.175, abs=0.01)
    assert np.mean(np.log(ratios)) == pytest.approx(0.0, abs=0.05)
    starts, stops = np.moveaxis(spans[erased], -1, 0)
    assert (starts.min(axis=0) == 0).all()
    assert (stops.max(axis=0) == 64).all()
    assert np.mean((starts + 0.5) / (65 - sizes[erased])) == pytest.approx(0.5, abs=0.03)


# --- Any of them ---


def test_no_augmentation_is_the_identity():
    images = np.random.default_rng(0).normal(size=(3, 8, 8, 1)).astype(np.float32)
    np.testing.assert_array_equal(augment([], images), images)


def test_augmentation_depends_on_the_key_and_the_image():
    images = jnp.asarray(repeated(counting(8, 1), 20))

    @functools.partial(jax.jit, compiler_options=QUICK)
    def each(key):
        return {name: function(key, images) for name, function in AUGMENTATIONS.items()}

    first, again, other = each(KEY), each(KEY), each(jax.random.key(1))
    for name, result in first.items():
        np.testing.assert_array_equal(result, again[name])
        assert (result != other[name]).any(), name
        assert (result != result[:1]).any(), name


def test_augmentations_apply_in_order_with_their_own_draws(monkeypatch):
    monkeypatch.setitem(AUGMENTATIONS, "double", lambda key, images: 2 * images)
    monkeypatch.setitem(AUGMENTATIONS, "draw", lambda key, images: images + jax.random.uniform(key))
    zero = jnp.zeros((1, 1, 1, 1))
    first = make_augmentation(["draw"])(KEY, zero)
    np.testing.assert_allclose(make_augmentation(["draw", "double"])(KEY, zero), 2 * first)
    assert make_augmentation(["draw", "draw"])(KEY, zero) != 2 * first
    second = make_augmentation(["draw", "draw"])(KEY, zero) - first
    np.testing.assert_allclose(make_augmentation(["double", "draw"])(KEY, zero), second, rtol=1e-5)


@pytest.mark.parametrize(
    ("shape", "dtype"), [((5, 28, 28, 1), jnp.float32), ((2, 64, 64, 3), jnp.bfloat16)]
)
def test_shape_and_dtype_are_kept_under_vmap(shape, dtype):
    transform = make_augmentation(list(AUGMENTATIONS))
    images = jax.ShapeDtypeStruct((3, *shape), dtype)
    keys = jax.eval_shape(lambda: jax.random.split(KEY, 3))
    result = jax.eval_shape(jax.vmap(transform), keys, images)
    assert (result.shape, result.dtype) == (images.shape, dtype)


def test_an_image_does_not_depend_on_other_images():
    images = np.arange(1, 4 * 8 * 8 + 1, dtype=np.float32).reshape(4, 8, 8, 1)
    names = ["crop", "resized_crop"]
    result = augment(names, images)
    others = np.where(np.arange(4)[:, None, None, None] == 2, images, -images)
    np.testing.assert_array_equal(augment(names, others)[2], result[2])


@on_eight_devices
def test_an_image_does_not_depend_on_the_number_of_devices():
    images = np.arange(1, 4 * 8 * 8 + 1, dtype=np.float32).reshape(4, 8, 8, 1)
    names = ["crop", "resized_crop"]
    mesh = jax.make_mesh((2,), ("data",), (AxisType.Auto,))
    sharded = jax.device_put(images, NamedSharding(mesh, PartitionSpec("data")))
    result = jax.jit(make_augmentation(names))(jax.random.key(0), sharded)
    assert len(result.sharding.device_set) == 2
    np.testing.assert_allclose(result, augment(names, images), rtol=1e-6)


def test_an_unknown_augmentation_suggests_the_nearest():
    with pytest.raises(
        ValueError, match=r"unknown augmentation 'cutuot'; did you mean 'cutout'\?.*eras"
    ):
        make_augmentation(["crop", "cutuot"])
