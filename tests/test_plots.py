"""The pictures of the analysis: what they draw is what they were given, and all can be read."""

import itertools
import math

import matplotlib
import numpy as np
import pytest
from matplotlib import pyplot as plt
from matplotlib.colors import same_color, to_rgb
from matplotlib.patches import Circle
from matplotlib.quiver import Quiver
from matplotlib.text import Text

from examples.experiments import figures
from xsam_jax.analysis import plots
from xsam_jax.analysis.ascent_plane import AscentPlane

matplotlib.use("Agg")

LABELS = ("sgd", "sam, rho 0.1", "sam, rho 0.2", "xsam, rho 0.1, rho max 0.2", "looksam", "asam")
XS, YS = np.linspace(-0.8, 0.8, 21), np.linspace(-0.8, 0.8, 17)
SURFACE = 0.5 + XS**2 + 0.5 * YS[:, None] + 2 * (XS + YS[:, None]) ** 2
ALPHAS = np.linspace(0.0, 2.0, 21)
RHOS, RHO_MAXS = np.array([0.05, 0.1]), np.linspace(0.05, 0.5, 10)
GAPS = RHO_MAXS * (RHO_MAXS - RHOS[:, None])
RADII = np.linspace(0.1, 1.0, 5)
STAR = 1.4


def of_each(make):
    return {label: make(1.0 + place) for place, label in enumerate(LABELS)}


DENSITIES = of_each(
    lambda k: (
        np.linspace(-1, 3 * k, 400),
        np.exp(-50 * np.linspace(-1, 3 * k, 400) ** 2)
        + 1e-7 * np.exp(-50 * (np.linspace(-1, 3 * k, 400) - 2 * k) ** 2),
    )
)
LOSSES = of_each(lambda k: k * XS**2)
PROFILES = {f"epoch {n}": 5 + n * np.sin(ALPHAS + n / 4) for n in range(1, 6)}
SHARPNESS = of_each(lambda k: (k * RADII**2, 0.1 * RADII))
EIGENVALUES = of_each(lambda k: 300 / k / np.arange(1, 8) ** 2)


def plane_of(steps):
    """Gradients that turn to the right, and are applied one after the other."""
    turns = np.linspace(-0.2, 0.7, steps + 1) if steps > 1 else np.array([0.0, 0.5])
    gradients = np.stack([np.sin(turns), np.cos(turns)], axis=1) * np.arange(1, steps + 2)[:, None]
    path = np.stack([np.linspace(0, 0.0, steps + 1), 0.2 * np.arange(steps + 1)], axis=1)
    return AscentPlane(None, None, path, gradients, float(turns[-1]))


def ascent(steps=1, ax=None):
    radii = {"rho": 0.2, "rho_max": 0.6, "alpha": STAR}
    return plots.ascent_plane(plane_of(steps), XS, YS, SURFACE, **radii, ax=ax)


PICTURES = {
    "spectral_density": lambda ax=None: plots.spectral_density(DENSITIES, ax=ax),
    "loss_line": lambda ax=None: plots.loss_line(XS, LOSSES, ax=ax),
    "loss_surface": lambda ax=None: plots.loss_surface(XS, YS, SURFACE, ax=ax),
    "ascent_plane": lambda ax=None: ascent(ax=ax),
    "ascent_plane of 3 steps": lambda ax=None: ascent(3, ax=ax),
    "alpha_profiles": lambda ax=None: plots.alpha_profiles(ALPHAS, PROFILES, ax=ax),
    "gradient_gap": lambda ax=None: plots.gradient_gap(RHOS, RHO_MAXS, GAPS, ax=ax),
    "average_sharpness": lambda ax=None: plots.average_sharpness(RADII, SHARPNESS, ax=ax),
    "eigenvalues": lambda ax=None: plots.eigenvalues(EIGENVALUES, ax=ax),
}


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def curves(axes):
    """The lines that are in the legend."""
    return {line.get_label(): line for line in axes.lines if line.get_label()[0] != "_"}


def all_axes(axes):
    return [axes, *axes.child_axes]


def written(axes):
    """All text that can be seen, and where, in pixels."""
    for part in all_axes(axes):
        inside = part.get_window_extent()
        for name, axis in (("x", part.xaxis), ("y", part.yaxis)):
            if axis.label.get_text():
                yield axis.label.get_text(), axis.label.get_window_extent()
            for label in axis.get_ticklabels():
                box = label.get_window_extent()
                middle = np.mean(getattr(box, f"interval{name}"))
                low, high = getattr(inside, f"interval{name}")
                if label.get_text() and low - 1 <= middle <= high + 1:
                    yield label.get_text(), box
        for text in part.texts:
            yield text.get_text(), Text.get_window_extent(text)  # without an arrow
        if legend := part.get_legend():
            for text in legend.get_texts():
                yield text.get_text(), text.get_window_extent()


def overlap(first, second):
    shared = np.minimum(first.max, second.max) - np.maximum(first.min, second.min)
    return (shared > 0.5).all()


# --- All of them ---


@pytest.mark.parametrize("name", PICTURES)
def test_the_axes_are_those_given(name, monkeypatch):
    monkeypatch.setattr(plt, "show", lambda *_, **__: pytest.fail("shown"))
    figure, (left, right) = plt.subplots(1, 2)
    before = dict(matplotlib.rcParams)
    assert PICTURES[name](right) is right
    assert dict(matplotlib.rcParams) == before
    assert right.has_data()
    assert not left.has_data()
    assert plt.get_fignums() == [figure.number]


@pytest.mark.parametrize("name", PICTURES)
def test_a_picture_of_its_own_can_be_read(name):
    before = dict(matplotlib.rcParams)
    axes = PICTURES[name]()
    figure = axes.figure
    assert dict(matplotlib.rcParams) == before
    assert figure.get_figwidth() == 3.3
    figure.canvas.draw()
    assert axes.get_window_extent().height > 1.5 * figure.dpi  # a long legend takes nothing of it
    assert np.asarray(figure.canvas.buffer_rgba())[..., :3].std() > 10  # not blank
    seen = list(written(axes))
    assert len(seen) > 6
    for text, box in seen:
        assert (box.min >= 0).all(), f"{text} is cut off"
        assert (box.max <= figure.bbox.max).all(), f"{text} is cut off"
    for (one, first), (other, second) in itertools.combinations(seen, 2):
        assert not overlap(first, second), f"{one} is on {other}"
    for part in all_axes(axes):
        ticks = part.xaxis.get_ticklabels() + part.yaxis.get_ticklabels()
        for text in [part.xaxis.label, part.yaxis.label, *part.texts, *ticks]:
            assert text.get_fontsize() == 8
    if legend := axes.get_legend():
        assert legend.get_window_extent().y0 >= axes.get_window_extent().y1 - 1  # on no curve
        assert [text.get_fontsize() for text in legend.get_texts()] == [8] * len(curves(axes))


def test_ticks_are_as_many_where_other_text_is_large():
    axes = PICTURES["loss_line"]()
    axes.figure.canvas.draw()
    xs, ys = axes.get_xticks(), axes.get_yticks()
    with plt.rc_context({"xtick.labelsize": 40, "ytick.labelsize": 40}):
        axes.figure.canvas.draw()
        np.testing.assert_array_equal(axes.get_xticks(), xs)
        np.testing.assert_array_equal(axes.get_yticks(), ys)


@pytest.mark.parametrize(
    ("name", "x", "y"),
    [
        ("spectral_density", "eigenvalue of the Hessian", "density"),
        ("loss_line", "$x$ (unit: length of $d$)", "loss"),
        ("loss_surface", "$x$ (unit: length of $d_x$)", "$y$ (unit: length of $d_y$)"),
        ("ascent_plane", "distance along $g_{1}$ orthogonal to $g_0$", "distance along $g_0$"),
        (
            "ascent_plane of 3 steps",
            r"distance along $g_{3}$ orthogonal to $\theta_{3} - \theta_0$",
            r"distance along $\theta_{3} - \theta_0$",
        ),
        ("alpha_profiles", r"interpolation factor $\alpha$", "loss, each curve from 0 to 1"),
        (
            "gradient_gap",
            r"$\rho_m$",
            r"$L(\theta + \rho_m \hat g_1) - L(\theta + \rho_m \hat g_0)$",
        ),
        ("average_sharpness", "radius $r$ (band: ± 2 standard errors)", "average sharpness"),
        ("eigenvalues", "index", "eigenvalue of the Hessian"),
    ],
)
def test_axes_say_what_they_are(name, x, y):
    axes = PICTURES[name]()
    assert (axes.get_xlabel(), axes.get_ylabel()) == (x, y)


OF_METHODS = ("spectral_density", "loss_line", "average_sharpness", "eigenvalues")


@pytest.mark.parametrize("name", OF_METHODS)
def test_methods_have_their_colors_and_differ_in_grey(name):
    axes = PICTURES[name]()
    assert [text.get_text() for text in axes.get_legend().get_texts()] == list(LABELS)
    lines = curves(axes)
    for label in LABELS:
        color = plots.COLORS.get(label.split(",")[0], plots.FURTHER[0])
        assert same_color(lines[label].get_color(), color)
    assert len({str(line._unscaled_dash_pattern) for line in lines.values()}) == len(LABELS)


def test_styles_come_again_for_another_color_first():
    others = ["sgd", "xsam", "asam", "gsam", "wsam", "looksam"]
    labels = ["sam, rho 0", *others, *(f"sam, rho {k}" for k in range(1, 7))]
    lines = curves(plots.loss_line(XS, {label: XS for label in labels}))
    pairs = {(line.get_color(), str(line._unscaled_dash_pattern)) for line in lines.values()}
    assert len(pairs) == len(labels)


def test_looks_are_those_of_the_examples():
    assert figures.looks is plots.looks
    assert figures.COLORS is plots.COLORS
    labels = ["sgd", "SAM, rho 0.1", "sam rho 0.2", "other", "another"]
    gray, blue = plots.COLORS["sgd"], plots.COLORS["sam"]
    expected = [(gray, "-"), (blue, "-"), (blue, "--"), *((c, "-") for c in plots.FURTHER[:2])]
    assert list(plots.looks(labels).values()) == expected


# --- What is drawn ---


def test_spectral_density_shows_a_single_eigenvalue_and_no_tails():
    axes = PICTURES["spectral_density"]()
    for label, line in curves(axes).items():
        np.testing.assert_array_equal(line.get_data(), DENSITIES[label])
    low, high = axes.get_ylim()
    assert axes.get_yscale() == "log"
    assert 1e-9 < low < 1e-7 < 1 < high < 10  # between the peaks there is exp(-50)


def test_spectral_density_cuts_off_rounding():
    grid = np.linspace(-1, 3, 400)
    density = np.exp(-50 * grid**2) + 1e-20 * np.exp(-50 * (grid - 2) ** 2)
    low, _ = plots.spectral_density({"sam": (grid, density)}).get_ylim()
    np.testing.assert_allclose(low, 1e-12 * density.max())


def test_loss_line_draws_the_losses():
    lines = curves(PICTURES["loss_line"]())
    for label in LABELS:
        np.testing.assert_array_equal(lines[label].get_data(), (XS, LOSSES[label]))


def filled(axes):
    return next(c for c in axes.collections if getattr(c, "filled", False))


def thin(axes):
    return next(c for c in axes.collections if getattr(c, "filled", True) is False)


def test_loss_surface_covers_all_losses():
    axes = PICTURES["loss_surface"]()
    levels = filled(axes).levels
    assert levels[0] <= SURFACE.min() < levels[1]
    assert levels[-2] < SURFACE.max() <= levels[-1]
    assert 5 <= len(levels) <= 17
    np.testing.assert_allclose(np.diff(levels), levels[1] - levels[0])
    assert (axes.get_xlim(), axes.get_ylim()) == ((-0.8, 0.8), (-0.8, 0.8))
    (bar,) = axes.child_axes
    assert bar.get_ylabel() == "loss"


@pytest.mark.parametrize("low", [1e-3, 0.0])
@pytest.mark.parametrize("high", [1.0, 1e12])
def test_loss_surface_over_orders_of_magnitude(low, high):
    losses = low + high * (XS**2 * YS[:, None] ** 2)
    levels = filled(plots.loss_surface(XS, YS, losses)).levels
    assert 4 <= len(levels) <= 16
    assert (levels[1:] >= 1.4 * levels[:-1]).all()
    assert levels[-2] < losses.max() <= levels[-1] * (1 + 1e-9)
    assert np.mean(losses < levels[0]) < 0.2


def test_levels_given_have_equal_colors_in_every_picture():
    levels = [0.5, 1.0, 2.0, 4.0]
    pictures = [
        filled(plots.loss_surface(XS, YS, scale * SURFACE, levels=levels)) for scale in (1, 0.3, 9)
    ]
    for picture in pictures:
        np.testing.assert_array_equal(picture.levels, levels)
        np.testing.assert_array_equal(picture.get_facecolor(), pictures[0].get_facecolor())
    grays = [np.dot(to_rgb(c), [0.299, 0.587, 0.114]) for c in pictures[0].get_facecolor()]
    assert len(grays) == len(levels) + 1
    assert (np.diff(grays) > 0.05).all()
    outside = plots.loss_surface(XS, YS, 1e3 * SURFACE + 10, levels=levels)
    assert len([c for c in outside.collections if hasattr(c, "levels")]) == 1  # and no warning


def test_loss_surface_leaves_white_what_is_not_finite():
    losses = np.where(XS > 0.5, np.inf, SURFACE)
    losses[0, 0] = np.nan
    axes = plots.loss_surface(XS, YS, losses)
    assert max(path.vertices[:, 0].max() for path in filled(axes).get_paths() if len(path)) <= 0.5
    finite = losses[np.isfinite(losses)]
    assert filled(axes).levels[-2] < finite.max() <= filled(axes).levels[-1]
    assert thin(axes).levels.size


def test_a_flat_surface_is_drawn_too():
    levels = filled(plots.loss_surface(XS, YS, np.full_like(SURFACE, 2.0))).levels
    assert levels[0] < 2 < levels[-1]


@pytest.mark.parametrize("steps", [1, 3])
def test_ascent_plane_draws_the_ascent(steps):
    axes, plane = ascent(steps), plane_of(steps)
    assert axes.get_aspect() == 1
    (arrows,) = (c for c in axes.collections if isinstance(c, Quiver))
    drawn = np.stack([arrows.U, arrows.V], axis=1)
    units = plane.gradients / np.linalg.norm(plane.gradients, axis=1, keepdims=True)
    np.testing.assert_allclose(drawn, 0.2 * units)
    np.testing.assert_array_equal(arrows.XY, np.zeros_like(drawn))
    assert (arrows.angles, arrows.scale, arrows.scale_units) == ("xy", 1, "xy")
    colors = arrows.get_facecolor()
    assert same_color(colors[0], plots.COLORS["sgd"])
    assert same_color(colors[-1], plots.COLORS["sam"])

    circles = [patch for patch in axes.patches if isinstance(patch, Circle)]
    assert [circle.radius for circle in circles] == [0.2, 0.6]
    assert [circle.center for circle in circles] == [(0, 0)] * 2
    assert [circle.get_linestyle() for circle in circles] == ["--", "-."]

    line, star, *path = axes.lines
    point = plane.point(STAR, 0.6)
    np.testing.assert_allclose(star.get_xydata(), [point])
    assert star.get_marker() == "*"
    np.testing.assert_allclose(line.get_xydata(), [(0, 0), point])
    assert same_color(line.get_color(), plots.COLORS["xsam"])
    if steps > 1:
        np.testing.assert_array_equal(path[0].get_xydata(), plane.path)
        assert path[0].get_marker() == "."
    assert len(path) == (steps > 1)

    names = {text.get_text(): text.xy for text in axes.texts}
    places = {"$g_0$": drawn[0], r"$\alpha^*$": point, r"$\theta_0$": (0, 0)}
    places |= {f"$g_{{{i}}}@\\theta_0$": drawn[i] for i in range(1, steps + 1)}
    places |= {f"$\\theta_{{{steps}}}$": plane.path[-1]} if steps > 1 else {}
    for name, place in places.items():
        np.testing.assert_allclose(names.pop(name), place)
    radii = [(name, math.hypot(*place)) for name, place in names.items()]
    assert radii == [(r"$\rho$", pytest.approx(0.2)), (r"$\rho_m$", pytest.approx(0.6))]


def test_ascent_plane_with_the_radius_alone():
    axes = plots.ascent_plane(plane_of(1), XS, YS, SURFACE, rho=0.2)
    assert [circle.radius for circle in axes.patches] == [0.2]
    assert not axes.lines
    expected = {"$g_0$", r"$g_{1}@\theta_0$", r"$\theta_0$", r"$\rho$"}
    assert {text.get_text() for text in axes.texts} == expected


def test_ascent_plane_shows_a_star_beyond_the_surface():
    radii = {"rho": 0.2, "rho_max": 2.0, "alpha": 1.0}
    axes = plots.ascent_plane(plane_of(1), XS, YS, SURFACE, **radii)
    (x, y), (_, top) = plane_of(1).point(1.0, 2.0), axes.get_ylim()
    assert y <= top
    assert axes.get_xlim() == (-0.8, max(0.8, x))


def test_a_gradient_that_is_orthogonal_to_the_plane_has_no_arrow():
    plane = plane_of(2)
    plane.gradients[1] = 0.0
    axes = plots.ascent_plane(plane, XS, YS, SURFACE, rho=0.2)
    (arrows,) = (c for c in axes.collections if isinstance(c, Quiver))
    assert (arrows.U[1], arrows.V[1]) == (0, 0)
    assert r"$g_{1}@\theta_0$" not in {text.get_text() for text in axes.texts}


@pytest.mark.parametrize("normalize", [True, False])
def test_alpha_profiles_have_their_maxima_marked(normalize):
    axes = plots.alpha_profiles(ALPHAS, PROFILES, normalize=normalize)
    lines = curves(axes)
    assert list(lines) == list(PROFILES)
    for label, losses in PROFILES.items():
        (maximum,) = lines[label].get_markevery()
        assert losses[maximum] == losses.max()
        expected = (losses - losses.min()) / np.ptp(losses) if normalize else losses
        np.testing.assert_allclose(lines[label].get_data(), (ALPHAS, expected))
    (sam,) = (line for line in axes.lines if line.get_label() not in lines)
    assert list(sam.get_xdata()) == [1, 1]
    (text,) = axes.texts
    assert (text.get_text(), text.get_position()) == ("SAM", (1, 1))
    assert axes.get_ylabel() == ("loss, each curve from 0 to 1" if normalize else "loss")


def test_times_go_from_dark_to_light_and_differ_in_marker():
    lines = curves(PICTURES["alpha_profiles"]()).values()
    grays = [np.dot(to_rgb(line.get_color()), [0.299, 0.587, 0.114]) for line in lines]
    assert (np.diff(grays) > 0.05).all()
    assert max(grays) < 0.8  # on white
    assert len({line.get_marker() for line in lines}) == len(PROFILES)


def test_a_flat_profile_is_drawn_too():
    lines = curves(plots.alpha_profiles(ALPHAS, {"epoch 1": np.ones_like(ALPHAS)}))
    np.testing.assert_array_equal(lines["epoch 1"].get_ydata(), 0)


def test_gradient_gap_has_a_curve_for_each_rho():
    axes = PICTURES["gradient_gap"]()
    lines = curves(axes)
    assert list(lines) == [r"$\rho$ = 0.05", r"$\rho$ = 0.1"]
    for line, row in zip(lines.values(), GAPS, strict=True):
        np.testing.assert_array_equal(line.get_data(), (RHO_MAXS, row))
    zero = axes.lines[0]
    assert list(zero.get_ydata()) == [0, 0]
    assert zero.get_label() not in lines


def test_average_sharpness_has_bands_of_two_standard_errors():
    axes = PICTURES["average_sharpness"]()
    lines = curves(axes)
    for label, band in zip(LABELS, axes.collections, strict=True):
        means, errors = SHARPNESS[label]
        np.testing.assert_array_equal(lines[label].get_data(), (RADII, means))
        ys = band.get_paths()[0].vertices[:, 1]
        np.testing.assert_allclose(
            (ys.min(), ys.max()), ((means - 2 * errors).min(), (means + 2 * errors).max())
        )


def test_eigenvalues_are_drawn_by_index():
    axes = plots.eigenvalues({"sgd": [9.0, 4.0, 1.0], "sam": [3.0, 2.0]})
    lines = curves(axes)
    np.testing.assert_array_equal(lines["sgd"].get_xydata(), [(1, 9), (2, 4), (3, 1)])
    np.testing.assert_array_equal(lines["sam"].get_xydata(), [(1, 3), (2, 2)])
    assert all(float(tick).is_integer() for tick in axes.get_xticks())


@pytest.mark.parametrize(
    ("values", "scale"),
    [([9.0, 1.0], "linear"), ([900.0, 1.0], "log"), ([900.0, 1.0, -1.0], "linear")],
)
def test_eigenvalues_far_apart_are_on_a_logarithmic_axis(values, scale):
    assert plots.eigenvalues({"sgd": values}).get_yscale() == scale


# --- What cannot be drawn ---

PLANE = plane_of(1)


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (lambda: plots.spectral_density({}), "densities is empty"),
        (lambda: plots.loss_line(XS, {}), "losses is empty"),
        (lambda: plots.alpha_profiles(ALPHAS, {}), "profiles is empty"),
        (lambda: plots.average_sharpness(RADII, {}), "sharpness is empty"),
        (lambda: plots.eigenvalues({}), "values is empty"),
        (lambda: plots.gradient_gap([], RHO_MAXS, GAPS), r"rhos must be of shape \(points,\)"),
        (lambda: plots.spectral_density({"a": (XS, YS)}), r"density of 'a' .* \(21,\), got \(17,"),
        (lambda: plots.spectral_density({"a": (XS, 0 * XS)}), "no density is positive"),
        (lambda: plots.loss_line(XS, {"a": YS}), r"losses of 'a' must be of shape \(21,\), got"),
        (lambda: plots.loss_line(SURFACE, {"a": YS}), r"xs must be of shape \(points,\), got"),
        (
            lambda: plots.loss_surface(XS, YS, SURFACE.T),
            r"losses must be of shape \(len\(ys\), len\(xs\)\) = \(17, 21\), got \(21, 17\)",
        ),
        (lambda: plots.loss_surface(XS[::-1], YS, SURFACE), "xs must be two or more increasing"),
        (lambda: plots.loss_surface(XS, YS[:1], SURFACE[:1]), "ys must be two or more increasing"),
        (lambda: plots.loss_surface(XS, YS, SURFACE * np.nan), "no loss is finite"),
        (lambda: plots.loss_surface(XS, YS, SURFACE, levels=[1.0]), "levels must be two or more"),
        (lambda: plots.loss_surface(XS, YS, SURFACE, levels=[2, 1]), "levels .* increasing"),
        (lambda: plots.ascent_plane(PLANE, XS, YS, SURFACE.T, rho=0.1), r"losses must be of shape"),
        (lambda: plots.ascent_plane(PLANE, XS, YS, SURFACE, rho=0), "rho must be positive"),
        (
            lambda: plots.ascent_plane(PLANE, XS, YS, SURFACE, rho=0.1, rho_max=-1.0),
            "rho_max must be positive",
        ),
        (
            lambda: plots.ascent_plane(PLANE, XS, YS, SURFACE, rho=0.1, alpha=1.0),
            "alpha needs rho_max",
        ),
        (lambda: plots.alpha_profiles(ALPHAS, {"a": XS[1:]}), "profile 'a' must be of shape"),
        (lambda: plots.alpha_profiles([1, 2], {"a": [1, np.nan]}), "profile 'a' must be finite"),
        (lambda: plots.gradient_gap(RHOS, RHO_MAXS, GAPS.T), r"gaps must .*\(2, 10\), got \(10, 2"),
        (
            lambda: plots.average_sharpness(RADII, {"a": (RADII, RADII[1:])}),
            "standard errors of 'a' must be of shape",
        ),
        (lambda: plots.eigenvalues({"a": SURFACE}), "eigenvalues of 'a' must be of shape"),
    ],
)
def test_what_does_not_fit_is_said(draw, message):
    with pytest.raises(ValueError, match=message):
        draw()
    assert not plt.get_fignums()  # no half-drawn figure is left


def test_what_is_no_mapping_is_refused():
    for draw in (plots.spectral_density, plots.eigenvalues):
        with pytest.raises(TypeError, match="must be a dict from label to numbers"):
            draw([1.0, 2.0])
