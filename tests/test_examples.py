"""The examples: where they end, what they choose, and what they say to bad values."""

import importlib
import itertools
import json
import re
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib
import matplotlib.image
import numpy as np
import optax
import pytest

from examples import config as command_line
from examples import report
from examples.experiments.seeds import difference
from examples.image_classification.methods import FAMILY, Training
from xsam_jax import alias, slerp_sam, wrappers

ROOT = Path(__file__).parents[1]


def load_example(name):
    return importlib.import_module(f"examples.{name}")


digits = load_example("01_noisy_digits")
minima = load_example("02_two_minima")

# --- The function with two minima ---

SHARP, FLAT = (-16.8, 12.8), (19.8, 29.9)
# The paper rounds to a tenth. SAM does not come to rest: its gradient is that at a distance of 6,
# and it circles the minimum within 0.5, where on the circle being a matter of rounding.
END_POINTS = {
    "SGD": (SHARP, 0.275, 0.1),
    "SAM": (SHARP, 0.275, 0.6),
    "XSAM": (FLAT, 0.356, 0.1),
}


def test_two_minima_has_the_papers_loss():
    def divergence(mu, sigma, center, width):
        return np.log(width / sigma) + (sigma**2 + (mu - center) ** 2) / (2 * width**2) - 0.5

    for mu, sigma in [(-6.0, 10.0), (30.0, 20.0), (-20.0, 40.0)]:
        k1, k2 = divergence(mu, sigma, 20.0, 30.0), divergence(mu, sigma, -20.0, 10.0)
        expected = -np.log(0.7 * np.exp(-k1 / 1.8**2) + 0.3 * np.exp(-k2 / 1.2**2))
        actual = minima.loss_fn(jnp.array([mu, sigma]))
        np.testing.assert_allclose(actual, expected, rtol=1e-5)  # a few operations in float32


@pytest.mark.parametrize("method", END_POINTS)
def test_two_minima_ends_where_the_paper_says(method):
    point, loss, distance = END_POINTS[method]
    trajectory = minima.run(minima.make_optimizers()[method])
    assert trajectory.shape == (401, 2)
    np.testing.assert_array_equal(trajectory[0], minima.START)
    np.testing.assert_allclose(trajectory[-1], point, rtol=0.0, atol=distance)
    np.testing.assert_allclose(minima.loss_fn(trajectory[-1]), loss, rtol=0.0, atol=1e-3)


def test_two_minima_without_the_search_ends_in_the_sharp_minimum():
    # XSAM with alpha held at 1: the search alone is what leads to the flat minimum.
    tx = optax.chain(slerp_sam(rho=6.0, alpha=1.0), optax.sgd(5.0, momentum=0.9))
    np.testing.assert_allclose(minima.run(tx)[-1], SHARP, rtol=0.0, atol=0.6)


def test_two_minima_names_the_flat_one_flat():
    curvatures = [
        np.linalg.eigvalsh(jax.hessian(minima.loss_fn)(jnp.array(p))) for p in (SHARP, FLAT)
    ]
    assert np.all(curvatures[1] > 0)
    assert np.all(curvatures[0] > 2 * curvatures[1])


def test_two_minima_prints_and_draws(tmp_path, capsys):
    minima.main(["--out", str(tmp_path / "new" / "folder")])
    printed = capsys.readouterr().out
    assert all(name in printed for name in END_POINTS)
    assert_is_a_picture(tmp_path / "new" / "folder" / "trajectories.png")


# --- What analysis shows ---

FEW = ["--images=50", "--directions=2", "--probes=2", "--steps=0", "--points=0"]


def test_why_the_ascent_gradient_says_what_taylors_formula_says(tmp_path, capsys, monkeypatch):
    why = load_example("03_why_the_ascent_gradient")
    trained = why.train_network
    monkeypatch.setattr(why, "train_network", lambda steps: trained(steps // 20))
    why.main(["--out", str(tmp_path)])
    printed = capsys.readouterr().out
    found = re.findall(r"rho_max ([\d.]+) and beyond, exactly ([\d.]+)", printed)
    assert len(found) == 3
    for on_grid, exact in np.array(found, float):
        assert on_grid - 0.011 < exact <= on_grid  # 120 points up to 1.2
    hessian = np.diag([1.0, 12.0])
    start = np.array([1.5, 0.12])
    first, rho = hessian @ start, 0.3
    last = hessian @ (start + rho * first / np.linalg.norm(first))
    far = why.threshold(jnp.asarray(start), rho)

    def loss(gradient):
        x = start + far * gradient / np.linalg.norm(gradient)
        return 0.5 * x @ hessian @ x

    assert loss(last) == pytest.approx(loss(first), rel=1e-5)
    assert_is_a_picture(tmp_path / "why_the_ascent_gradient.png")


def test_more_ascent_steps_lead_astray_and_xsam_does_not(tmp_path, capsys):
    many = load_example("04_many_ascent_steps")
    found = [many.study(steps) for steps in (1, 4)]
    assert found[0]["off"] < 10 < 40 < found[1]["off"]
    assert found[1]["along"] < 0 < found[0]["along"]
    assert found[1]["rise"] == pytest.approx(found[0]["rise"], rel=0.01)
    # On the ring at a distance of 0.8 from (1, 0).
    best = many.highest()
    others = [[np.cos(a), np.sin(a)] for a in np.linspace(0, 6, 50)]
    highest = many.loss_fn(many.START + 0.8 * best)
    assert all(many.loss_fn(many.START + 0.8 * np.array(other)) <= highest for other in others)
    assert found[0]["rise"] == pytest.approx(float(highest), rel=0.01)
    many.main(["--out", str(tmp_path)])
    assert "at alpha 0.00" in capsys.readouterr().out
    assert_is_a_picture(tmp_path / "many_ascent_steps.png")


def test_flat_minima_trains_and_measures(tmp_path, capsys):
    flat = load_example("05_flat_minima")
    assert flat.main(["--out", str(tmp_path), "--epochs", "1", "--seeds", "1", *FEW]) == 0
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    assert [row.split()[1] for row in rows[2:]] == ["sgd", "sam", "xsam"]
    assert_is_a_picture(tmp_path / "analysis" / "eigenvalues.png")


def test_alpha_over_training_finds_what_xsam_finds(tmp_path, capsys, monkeypatch):
    alpha = load_example("06_alpha_over_training")
    monkeypatch.setattr(alpha, "EPOCHS", (0, 1, 2))
    alpha.main(["--out", str(tmp_path)])
    lines = capsys.readouterr().out.splitlines()[1:4]
    pairs = [line.split()[2:] for line in lines]
    assert len(pairs) == 3
    assert all(maximum == found for maximum, found in pairs)
    assert_is_a_picture(tmp_path / "alpha_over_training.png")


# --- Noisy digits ---

PICTURES = ("accuracy_over_rho", "alpha_and_psi")


def assert_is_a_picture(path):
    pixels = matplotlib.image.imread(path)
    assert min(pixels.shape[:2]) > 300
    assert pixels.std() > 0.01  # not blank


@pytest.fixture(scope="module")
def tiny_run(tmp_path_factory):
    """Every method over two rho, with one seed and two epochs."""
    out = tmp_path_factory.mktemp("digits") / "run"
    arguments = ["--epochs", "2", "--seeds", "1", "--rho", "0.2", "0.1", "--out", str(out)]
    return digits.main(arguments), out


def test_digits_returns_finite_numbers(tiny_run):
    summary, _ = tiny_run
    settings = [(run["method"], run["rho"], run["rho_max"]) for run in summary["runs"]]
    assert settings == [
        ("sgd", None, None),
        ("sam", 0.1, None),
        ("sam", 0.2, None),
        ("xsam", 0.1, 0.2),
        ("xsam", 0.2, 0.4),
    ]
    for run in summary["runs"]:
        for name in set(run) - {"method", "rho", "rho_max"}:
            assert np.all(np.isfinite(run[name])), (run["method"], name)
        # Two epochs do not teach much, but more than the ten percent of a guess.
        assert 20 < run["validation"][0] <= 100
        assert 20 < run["test"][0] <= 100
    assert set(summary["chosen"]) == {"sgd", "sam", "xsam"}


def test_digits_writes_results_and_pictures(tiny_run):
    summary, out = tiny_run
    written = json.loads((out / "results.json").read_text())
    assert written == json.loads(json.dumps(summary))
    assert written["config"]["epochs"] == 2
    files = sorted(path.name for path in out.iterdir() if path.is_file())
    assert files == sorted([f"{name}.png" for name in PICTURES] + ["results.json"])
    for name in PICTURES:
        assert_is_a_picture(out / f"{name}.png")


def test_digits_prints_two_tables(capsys):
    results = {
        digits.Setting("sgd"): fake_runs([80.0, 81.0], [70.0, 71.0]),
        digits.Setting("sam", 0.1): fake_runs([90.0, 91.0], [93.0, 94.0]),
        digits.Setting("sam", 0.2): fake_runs([80.0, 81.0], [99.0, 99.0]),
        digits.Setting("xsam", 0.1, 0.2): fake_runs([80.0, 81.0], [99.0, 99.0]),
        digits.Setting("xsam", 0.2, 0.4): fake_runs([91.0, 92.0], [94.0, 94.0]),
    }
    config = digits.Config(rhos=(0.1, 0.2), seeds=(0, 1))
    report.report(results, report.choose(results), config)
    lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
    assert "SAM rho 0.1                90.5 ±  0.7 *" in lines
    assert "SAM rho 0.1                93.5 ±  0.7  1.50" in lines
    assert not any("99.0" in line for line in lines)  # the test of what was not chosen
    assert "SAM - SGD: +23.0, standard error 0.7: more than two standard errors" in lines
    assert "XSAM - SAM: +0.5, standard error 0.5: tie" in lines
    assert sum("edge of the sweep" in line for line in lines) == 2


def fake_runs(validation, test):
    gradients = np.array([[1.0, 2.0]] * len(test))
    return {
        "validation": np.array(validation),
        "test": np.array(test),
        "gradients": gradients,
    }


def test_digits_compares_many_methods_to_sam_only(capsys):
    results = {digits.Setting(name, 0.1): fake_runs([90.0, 91.0], [93.0, 94.0]) for name in FAMILY}
    results[digits.Setting("gsam", 0.1)] = fake_runs([90.0, 91.0], [83.0, 84.0])
    report.report(results, report.choose(results), digits.Config(rhos=(0.1,), seeds=(0, 1)))
    lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
    assert sum(" - SAM: " in line for line in lines) == len(FAMILY) - 1
    assert "GSAM - SAM: -10.0, standard error 0.7: more than two standard errors" in lines
    assert not any(" - SGD: " in line for line in lines)


def test_digits_draws_a_panel_for_each_of_many_methods():
    tests = {name: {0.1: np.array([90.0, 91.0]), 0.2: np.array([93.0, 9.0])} for name in FAMILY}
    tests["sgd"] = {None: np.array([80.0, 81.0])}
    rings = dict.fromkeys(FAMILY, 0.1) | {"sgd": None}
    figure = digits.figures.accuracy_in_panels(tests, rings)
    panels = [axes for axes in figure.axes if axes.get_title()]
    assert [axes.get_title() for axes in panels] == [name for name in FAMILY if name != "sgd"]
    for axes in panels:
        _, _, curve, ring = axes.lines
        np.testing.assert_array_equal(curve.get_xydata(), [(0.1, 90.5), (0.2, 51.0)])
        np.testing.assert_array_equal(ring.get_xydata(), [(0.1, 90.5)])
    digits.figures.plt.close(figure)


def test_digits_chooses_on_validation():
    good, lucky = digits.Setting("sam", 0.1), digits.Setting("sam", 0.2)
    results = {lucky: fake_runs([80.0, 90.0], [99.0, 99.0]), good: fake_runs([86.0, 86.0], [0, 0])}
    assert report.choose(results) == {"sam": good}


def test_digits_calls_two_standard_errors_a_difference():
    # Variance 2 / 3 each, so the standard error of the difference is sqrt(2 * (2 / 3) / 4) = 0.58.
    values = np.array([0.0, 1.0, 1.0, 2.0])
    assert difference(values + 1.1, values).endswith("0.6: tie")
    assert difference(values + 1.2, values).endswith("0.6: more than two standard errors")
    assert difference(values - 1.2, values).endswith("0.6: more than two standard errors")


def test_digits_are_trained_on_as_the_settings_say(tmp_path):
    config = digits.Config(steps=2, epochs=1, noise=0.3, out=tmp_path)
    digits.run(digits.Setting("xsam", 0.1, 0.4), 5, config)
    (saved,) = tmp_path.rglob("config.json")
    saved = json.loads(saved.read_text())
    expected = {"method": "xsam", "rho": 0.1, "rho_max": 0.4, "ascent_steps": 2, "epochs": 1}
    expected |= {"seed": 5, "label_noise": 0.3, "train_size": 1000, "validation_size": 297}
    assert {name: saved[name] for name in expected} == expected


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--rho -0.1", "argument --rho: must be a number above 0, not '-0.1'"),
        ("--rho 0.1 nan", "argument --rho: must be a number above 0, not 'nan'"),
        ("--rho-max inf", "argument --rho-max: must be a number above 0, not 'inf'"),
        ("--method xsm", "unknown method 'xsm'; did you mean 'xsam'?"),
        ("--method adam", "unknown method 'adam'; did you mean 'asam'?"),
        ("--method lbfgs", "unknown method 'lbfgs'; choose from sgd, sam, xsam, slerp_sam, "),
        ("--method sgd --rho 0.1", "argument --rho: SGD has no rho"),
        ("--method sgd sam --rho-max 0.1", "argument --rho-max: only XSAM has one"),
        ("--epochs 0", "argument --epochs: must be an integer of at least 1, not '0'"),
        ("--epochs 1.5", "argument --epochs: must be an integer of at least 1, not '1.5'"),
        ("--seeds 0", "argument --seeds: must be an integer of at least 1, not '0'"),
        ("--seed -1", "argument --seed: must be an integer from 0 to 2**31 - 1, not '-1'"),
        ("--seed 1 --seeds 2", "argument --seed: give either --seed or --seeds"),
        (
            "--method gsam --steps 2",
            "argument --steps: only these take several: sam, xsam, slerp_sam",
        ),
        ("--steps 0", "argument --steps: must be an integer of at least 1, not '0'"),
        ("--epoch 3", "unrecognized arguments: --epoch 3"),
    ],
)
def test_digits_says_in_one_line_what_is_wrong(arguments, message, capsys):
    with pytest.raises(SystemExit) as stop:
        digits.main(arguments.split())
    assert stop.value.code == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert message in captured.err


def test_digits_says_that_it_cannot_write(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    with pytest.raises(SystemExit):
        read_config(["--out", str(tmp_path / "file" / "folder")])
    assert "argument --out: " in capsys.readouterr().err


def test_digits_as_a_script_exits_with_code_two():
    command = [sys.executable, "-m", "examples.01_noisy_digits", "--method", "xsm"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.endswith("did you mean 'xsam'?\n")
    assert "Traceback" not in done.stderr


def test_digits_merges_repeated_options(tmp_path):
    arguments = ["--method", "xsam", "--method", "sgd", "--rho", "0.3", "--rho", "0.1", "0.3"]
    config = read_config([*arguments, "--seed", "4", "4", "2", "--out", str(tmp_path)])
    assert config.methods == ("sgd", "xsam")
    assert config.rhos == (0.1, 0.3)
    assert config.seeds == (4, 2)
    assert read_config(["--method", "all", "--out", str(tmp_path)]).methods == tuple(FAMILY)


def read_config(arguments):
    return command_line.read_config(arguments, "a description")


# --- The family by name ---


def test_every_method_of_the_library_has_a_name():
    functions = {name for name in alias.__all__ + wrappers.__all__ if name.islower()}
    assert set(FAMILY) == functions | {"sgd", "msam+", "lsam+"}


GRADIENTS = {
    "sgd": 1.0,
    "gsam": 2.0,
    "lsam+": 3.0,
    "gam": 4.0,
    "look_sam": 1.2,
    "esam": 2.0,
    "decoupled_wsam": 2.0,
}


# One of each kind; that all names make what they say is the test below.
@pytest.mark.parametrize("method", GRADIENTS)
def test_digits_trains_with_every_kind_of_method(method, tmp_path):
    config = digits.Config(rhos=(0.1,), seeds=(0,), epochs=2, out=tmp_path)
    (setting,) = digits.settings(method, config)
    run = digits.run(setting, 0, config)
    np.testing.assert_allclose(np.mean(run["gradients"]), GRADIENTS[method], rtol=1e-6)
    assert np.all(np.isfinite(run["loss"]))
    assert run["validation"] > 20  # a guess is right in ten percent


def test_no_two_names_are_the_same_method():
    def losses_fn(params):
        return jnp.sin(params["x"] * jnp.arange(1.0, 4.0)) + params["y"] ** 2

    def run(method, steps):
        base = optax.sgd(0.1, momentum=0.9)
        search = {"probe_every": 2, "alpha_max": 3.2, "num_alphas": 9}
        training = Training(0.6, steps, search, base, 0.1, jax.random.key(0))
        tx = method.make(0.3, training)
        tx = optax.with_extra_args_support(tx if method.has_base else optax.chain(tx, base))

        def value_fn(params):
            return losses_fn(params).mean()

        def step(params, state):
            grads = jax.grad(value_fn)(params)
            extra_args = {"value_fn": value_fn, "losses_fn": losses_fn}
            updates, state = tx.update(grads, state, params, **extra_args)
            return optax.apply_updates(params, updates), state

        params = {"x": jnp.array([0.3, -0.2, 0.5]), "y": jnp.array(0.4)}
        state = tx.init(params)
        for _ in range(6):
            params, state = step(params, state)
        return np.array([*params["x"], params["y"]])

    ends = {name: run(method, 1) for name, method in FAMILY.items()}
    ends |= {f"{name}, 3 steps": run(FAMILY[name], 3) for name in FAMILY if FAMILY[name].steps}
    for one, other in itertools.combinations(ends, 2):
        assert np.max(np.abs(ends[one] - ends[other])) > 1e-5, (one, other)
