"""Figures of the analysis: they draw the given numbers, and their text is readable."""

import functools
import itertools
import math

import matplotlib
import numpy as np
import pytest
from matplotlib import pyplot as plt
from matplotlib.colors import same_color, to_rgb
from matplotlib.patches import Circle, FancyArrowPatch
from matplotlib.quiver import Quiver
from matplotlib.text import Text

from examples.experiments import figures
from xsam_jax.analysis import plots, surface_plots
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
    """Returns a plane with gradients that turn to the right, applied one after the other."""
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


@pytest.fixture(autouse=True, scope="module")
def default_settings():
    with plt.style.context("default"):
        yield


@pytest.fixture(autouse=True)
def close_figures():
    plt.close("all")  # those of other files
    yield
    plt.close("all")


@functools.cache
def drawn(name):
    """Returns the axes of a new figure, rendered once for all tests."""
    before = dict(matplotlib.rcParams)
    axes = PICTURES[name]()
    assert dict(matplotlib.rcParams) == before
    axes.figure.canvas.draw()
    return axes


def curves(axes):
    """Returns the lines that are in the legend, by label."""
    return {line.get_label(): line for line in axes.lines if line.get_label()[0] != "_"}


def legend_of(axes):
    """Returns the legend of a new figure, or None."""
    assert axes.get_legend() is None
    return next(iter(axes.figure.legends), None)


def all_axes(axes):
    return [axes, *axes.child_axes]


def written(axes):
    """Yields all visible text, and its box in pixels."""
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
    for legend in axes.figure.legends:
        for text in legend.get_texts():
            yield text.get_text(), text.get_window_extent()


def overlap(first, second):
    shared = np.minimum(first.max, second.max) - np.maximum(first.min, second.min)
    return (shared > 0.5).all()


def check_readable(axes):
    figure = axes.figure
    seen = list(written(axes))
    for text, box in seen:
        assert (box.min >= 0).all(), f"{text} is cut off"
        assert (box.max <= figure.bbox.max).all(), f"{text} is cut off"
    for (one, first), (other, second) in itertools.combinations(seen, 2):
        assert not overlap(first, second), f"{one} is on {other}"
    assert axes.get_window_extent().height > 1.5 * figure.dpi  # not reduced by a long legend
    if legend := legend_of(axes):
        assert legend.get_window_extent().y0 >= axes.get_window_extent().y1 - 1  # on no curve
    return seen


# --- All figures ---


def test_given_axes_are_drawn_on_and_their_figure_is_unchanged(monkeypatch):
    monkeypatch.setattr(plt, "show", lambda *_, **__: pytest.fail("shown"))
    figure, (left, right) = plt.subplots(1, 2)

    def state():
        boxes = [axes.get_position(original=True).bounds for axes in figure.axes]
        size = figure.get_size_inches().tolist()
        return dict(matplotlib.rcParams), size, boxes, figure.get_layout_engine(), [*figure.legends]

    before = state()
    for name in PICTURES:
        if "steps" in name:  # one plane is enough
            continue
        assert PICTURES[name](right) is right, name
        assert state() == before, name
        assert right.has_data(), name
        assert not left.has_data(), name
        assert plt.get_fignums() == [figure.number], name
        assert figure.axes == [left, right], name
        texts = right.get_legend().get_texts() if curves(right) else []
        assert [text.get_text() for text in texts] == list(curves(right)), name
        right.clear()


@pytest.mark.parametrize("name", PICTURES)
def test_text_of_a_new_figure_is_readable(name):
    axes = drawn(name)
    figure = axes.figure
    assert figure.get_figwidth() == 3.3
    assert np.asarray(figure.canvas.buffer_rgba())[..., :3].std() > 10  # not blank
    assert len(check_readable(axes)) > 6
    for part in all_axes(axes):
        ticks = part.xaxis.get_ticklabels() + part.yaxis.get_ticklabels()
        for text in [part.xaxis.label, part.yaxis.label, *part.texts, *ticks]:
            assert text.get_fontsize() == 8
    assert bool(legend_of(axes)) == bool(curves(axes))
    if legend := legend_of(axes):
        assert [text.get_fontsize() for text in legend.get_texts()] == [8] * len(curves(axes))


def test_long_and_many_labels_are_readable():
    long = "xsam, rho 0.1, rho max {}, label noise 0.4, cosine schedule, with many words"
    labels = [*map(long.format, (0.1, 0.2)), *(f"sam, {k}" for k in range(6))]
    axes = plots.loss_line(XS, {label: XS for label in labels})
    axes.figure.canvas.draw()
    seen = [text.replace("\n", " ") for text, _ in check_readable(axes)]
    assert set(labels) <= set(seen)


def test_short_labels_stand_side_by_side():
    boxes = [text.get_window_extent() for text in legend_of(drawn("gradient_gap")).get_texts()]
    assert boxes[0].y0 == boxes[1].y0


def test_number_of_ticks_does_not_depend_on_later_settings():
    axes = drawn("loss_line")
    xs, ys = axes.get_xticks(), axes.get_yticks()
    with plt.rc_context({"xtick.labelsize": 40, "ytick.labelsize": 40}):
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
def test_axes_are_labelled(name, x, y):
    axes = drawn(name)
    assert (axes.get_xlabel(), axes.get_ylabel()) == (x, y)


COMPARES_METHODS = ("spectral_density", "loss_line", "average_sharpness", "eigenvalues")


@pytest.mark.parametrize("name", COMPARES_METHODS)
def test_methods_have_fixed_colors_and_distinct_dashes(name):
    axes = drawn(name)
    assert [text.get_text() for text in legend_of(axes).get_texts()] == list(LABELS)
    lines = curves(axes)
    for label in LABELS:
        color = plots.COLORS.get(label.split(",")[0], plots.FURTHER[0])
        assert same_color(lines[label].get_color(), color)
    assert len({str(line._unscaled_dash_pattern) for line in lines.values()}) == len(LABELS)


def test_dashes_repeat_with_another_color_first():
    others = ["sgd", "xsam", "asam", "gsam", "wsam", "looksam"]
    styles = plots.line_styles(["sam, rho 0", *others, *(f"sam, rho {k}" for k in range(1, 7))])
    pairs = {(style["color"], str(style["linestyle"])) for style in styles.values()}
    assert len(pairs) == len(styles) == 13


def test_color_is_chosen_by_the_first_word():
    labels = ["sgd", "SAM, rho 0.1", "sam rho 0.2", "other", "another"]
    styles = plots.line_styles(labels, markers=True)
    colors = [plots.COLORS["sgd"], *[plots.COLORS["sam"]] * 2, *plots.FURTHER[:2]]
    assert [style["color"] for style in styles.values()] == colors
    for key in ("linestyle", "marker"):
        assert len({str(style[key]) for style in styles.values()}) == len(labels)
    assert [style["linestyle"] for style in styles.values()][:2] == ["-", "--"]
    assert {style["marker"] for style in plots.line_styles(labels).values()} == {""}


def test_experiments_share_the_style():
    assert figures.line_styles is plots.line_styles
    assert figures.COLORS is plots.COLORS
    assert figures.STYLE is plots.STYLE


# --- Numbers drawn ---


def test_spectral_density_axis_ends_below_the_lowest_peak():
    axes = drawn("spectral_density")
    for label, line in curves(axes).items():
        np.testing.assert_array_equal(line.get_data(), DENSITIES[label])
    low, high = axes.get_ylim()
    assert axes.get_yscale() == "log"
    assert 1e-9 < low < 1e-7 < 1 < high < 10  # between the peaks there is exp(-50)


def test_spectral_density_axis_cuts_off_rounding_errors():
    grid = np.linspace(-1, 3, 400)
    density = np.exp(-50 * grid**2) + 1e-20 * np.exp(-50 * (grid - 2) ** 2)
    low, _ = plots.spectral_density({"sam": (grid, density)}).get_ylim()
    np.testing.assert_allclose(low, 1e-12 * density.max())


def test_loss_line_draws_the_losses():
    lines = curves(drawn("loss_line"))
    for label in LABELS:
        np.testing.assert_array_equal(lines[label].get_data(), (XS, LOSSES[label]))


def filled(axes):
    return next(c for c in axes.collections if getattr(c, "filled", False))


def thin(axes):
    return next(c for c in axes.collections if getattr(c, "filled", True) is False)


def test_levels_cover_all_losses():
    axes = drawn("loss_surface")
    levels = filled(axes).levels
    assert levels[0] <= SURFACE.min() < levels[1]
    assert levels[-2] < SURFACE.max() <= levels[-1]
    assert 5 <= len(levels) <= 17
    np.testing.assert_allclose(np.diff(levels), levels[1] - levels[0])
    assert (axes.get_xlim(), axes.get_ylim()) == ((-0.8, 0.8), (-0.8, 0.8))
    (bar,) = axes.child_axes
    assert bar.get_ylabel() == "loss"


@pytest.mark.parametrize(
    ("low", "high"), [(1e-3, 1.0), (1e-3, 1e12), (0.0, 1.0), (0.0, 1e12), (3e3, 1.251e7)]
)
def test_levels_are_logarithmic_over_orders_of_magnitude(low, high):
    losses = low + high * (XS**2 * YS[:, None] ** 2)
    levels = filled(plots.loss_surface(XS, YS, losses)).levels
    assert 4 <= len(levels) <= 16
    assert (levels[1:] >= 1.4 * levels[:-1]).all()
    assert levels[-2] < losses.max() <= levels[-1] * (1 + 1e-9)
    assert np.mean(losses < levels[0]) < 0.2


def test_equal_levels_have_equal_colors():
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


def test_losses_that_are_not_finite_are_left_white():
    losses = np.where(XS > 0.5, np.inf, SURFACE)
    losses[0, 0] = np.nan
    axes = plots.loss_surface(XS, YS, losses)
    assert max(path.vertices[:, 0].max() for path in filled(axes).get_paths() if len(path)) <= 0.5
    finite = losses[np.isfinite(losses)]
    assert filled(axes).levels[-2] < finite.max() <= filled(axes).levels[-1]
    assert thin(axes).levels.size


def test_levels_enclose_a_constant_loss():
    levels = filled(plots.loss_surface(XS, YS, np.full_like(SURFACE, 2.0))).levels
    assert levels[0] < 2 < levels[-1]


@pytest.mark.parametrize("steps", [1, 3])
def test_ascent_plane_draws_the_ascent(steps):
    plane = plane_of(steps)
    axes = drawn("ascent_plane" if steps == 1 else f"ascent_plane of {steps} steps")
    assert axes.get_aspect() == 1
    (arrows,) = (c for c in axes.collections if isinstance(c, Quiver))
    ends = np.stack([arrows.U, arrows.V], axis=1)
    units = plane.gradients / np.linalg.norm(plane.gradients, axis=1, keepdims=True)
    np.testing.assert_allclose(ends, 0.2 * units)
    np.testing.assert_array_equal(arrows.XY, np.zeros_like(ends))
    assert (arrows.angles, arrows.scale, arrows.scale_units) == ("xy", 1, "xy")
    colors = arrows.get_facecolor()
    assert same_color(colors[0], plots.COLORS["sgd"])
    assert same_color(colors[-1], plots.COLORS["sam"])

    circles = [patch for patch in axes.patches if isinstance(patch, Circle)]
    assert [circle.radius for circle in circles] == [0.2, 0.6]
    assert [circle.center for circle in circles] == [(0, 0)] * 2
    assert [circle.get_linestyle() for circle in circles] == ["--", "-."]

    *path, line, star = axes.lines
    point = plane.point(STAR, 0.6)
    np.testing.assert_allclose(star.get_xydata(), [point])
    assert star.get_marker() == "*"
    np.testing.assert_allclose(line.get_xydata(), [(0, 0), point])
    assert same_color(line.get_color(), plots.COLORS["xsam"])
    if steps > 1:
        np.testing.assert_array_equal(path[0].get_xydata(), plane.path)
        assert path[0].get_marker() == "."
    assert len(path) == (steps > 1)

    for text in axes.texts:
        box, target = Text.get_window_extent(text), axes.transData.transform(text.xy)
        away = np.maximum(0, np.maximum(box.min - target, target - box.max))
        assert math.hypot(*away) < 0.6 * axes.figure.dpi, f"{text.get_text()} is far from its point"
    leaders = [patch for patch in axes.patches if isinstance(patch, FancyArrowPatch)]
    assert len(leaders) >= len(axes.texts) / 2

    names = {text.get_text(): text.xy for text in axes.texts}
    places = {"$g_0$": ends[0], r"$\alpha^*$": point, r"$\theta_0$": (0, 0)}
    places |= {f"$g_{{{i}}}@\\theta_0$": ends[i] for i in range(1, steps + 1)}
    places |= {f"$\\theta_{{{steps}}}$": plane.path[-1]} if steps > 1 else {}
    for name, place in places.items():
        np.testing.assert_allclose(names.pop(name), place)
    radii = [(name, math.hypot(*place)) for name, place in names.items()]
    assert radii == [(r"$\rho$", pytest.approx(0.2)), (r"$\rho_m$", pytest.approx(0.6))]


@pytest.fixture
def unplaced(monkeypatch):
    """Leaves labels where they start, since placing them renders the figure once more."""
    monkeypatch.setattr(surface_plots, "adjust_text", lambda *_, **__: None)


def test_ascent_plane_without_rho_max_has_one_circle(unplaced):
    axes = plots.ascent_plane(plane_of(1), XS, YS, SURFACE, rho=0.2)
    assert [circle.radius for circle in axes.patches] == [0.2]
    assert not axes.lines
    expected = {"$g_0$", r"$g_{1}@\theta_0$", r"$\theta_0$", r"$\rho$"}
    assert {text.get_text() for text in axes.texts} == expected


def test_gradient_orthogonal_to_the_plane_has_no_arrow(unplaced):
    plane = plane_of(2)
    plane.gradients[1] = 0.0
    axes = plots.ascent_plane(plane, XS, YS, SURFACE, rho=0.2)
    (arrows,) = (c for c in axes.collections if isinstance(c, Quiver))
    assert (arrows.U[1], arrows.V[1]) == (0, 0)
    assert r"$g_{1}@\theta_0$" not in {text.get_text() for text in axes.texts}


def test_axes_extend_to_a_star_beyond_the_surface(unplaced):
    radii = {"rho": 0.2, "rho_max": 2.0, "alpha": 1.0}
    axes = plots.ascent_plane(plane_of(1), XS, YS, SURFACE, **radii)
    (x, y), (_, top) = plane_of(1).point(1.0, 2.0), axes.get_ylim()
    assert y <= top
    assert axes.get_xlim() == (-0.8, max(0.8, x))


@pytest.mark.parametrize("normalize", [True, False])
def test_alpha_profiles_mark_their_maxima(normalize):
    axes = plots.alpha_profiles(ALPHAS, PROFILES, normalize=normalize)
    lines = curves(axes)
    sam = lines.pop("SAM's direction")
    assert list(sam.get_xdata()) == [1, 1]
    assert same_color(sam.get_color(), plots.COLORS["sam"])
    assert list(lines) == list(PROFILES)
    for label, losses in PROFILES.items():
        (maximum,) = lines[label].get_markevery()
        assert losses[maximum] == losses.max()
        expected = (losses - losses.min()) / np.ptp(losses) if normalize else losses
        np.testing.assert_allclose(lines[label].get_data(), (ALPHAS, expected))
    assert axes.get_ylabel() == ("loss, each curve from 0 to 1" if normalize else "loss")


def test_profiles_get_lighter_and_differ_in_marker():
    lines = [line for label, line in curves(drawn("alpha_profiles")).items() if label in PROFILES]
    grays = [np.dot(to_rgb(line.get_color()), [0.299, 0.587, 0.114]) for line in lines]
    assert (np.diff(grays) > 0.05).all()
    assert max(grays) < 0.8  # on white
    assert len({line.get_marker() for line in lines}) == len(PROFILES)


def test_constant_profile_is_drawn_at_zero():
    lines = curves(plots.alpha_profiles(ALPHAS, {"epoch 1": np.ones_like(ALPHAS)}))
    np.testing.assert_array_equal(lines["epoch 1"].get_ydata(), 0)


def test_gradient_gap_draws_a_curve_for_each_rho():
    axes = drawn("gradient_gap")
    lines = curves(axes)
    assert list(lines) == [r"$\rho$ = 0.05", r"$\rho$ = 0.1"]
    for line, row in zip(lines.values(), GAPS, strict=True):
        np.testing.assert_array_equal(line.get_data(), (RHO_MAXS, row))
    zero = axes.lines[0]
    assert list(zero.get_ydata()) == [0, 0]
    assert zero.get_label() not in lines


def test_average_sharpness_band_is_two_standard_errors():
    axes = drawn("average_sharpness")
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
def test_eigenvalues_far_apart_have_a_logarithmic_axis(values, scale):
    assert plots.eigenvalues({"sgd": values}).get_yscale() == scale


# --- Invalid arguments ---

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
def test_invalid_arguments_raise_and_leave_no_figure(draw, message):
    with pytest.raises(ValueError, match=message):
        draw()
    assert not plt.get_fignums()  # no half-drawn figure is left


def test_values_without_labels_raise():
    for draw in (plots.spectral_density, plots.eigenvalues):
        with pytest.raises(TypeError, match="must be a dict from label to numbers"):
            draw([1.0, 2.0])
