"""Checks of picture files."""

import matplotlib.image


def assert_is_a_picture(path):
    pixels = matplotlib.image.imread(path)
    assert min(pixels.shape[:2]) > 300
    assert pixels.std() > 0.01  # not blank
