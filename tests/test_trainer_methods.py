"""The table of methods of the trainer: every method has a row, trains, and differs from others."""

import dataclasses
import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from methods import NAMES

import xsam_jax
from examples.experiments.seed_statistics import difference
from examples.image_classification import program as image_program
from examples.image_classification.config import Config
from examples.image_classification.presets import settings_for
from examples.training import program as training_program
from examples.training.methods import FAMILY, METHODS, Training
from examples.training.optimizer import sharp_period
from examples.training.settings import settings_ignored_by
from examples.training.train import train


def test_every_method_of_the_library_has_a_row():
    assert set(FAMILY) == NAMES | {"sgd", "msam+", "lsam+"}


KINDS = (
    *("sgd", "gsam", "lsam+", "gam", "look_sam", "esam", "decoupled_wsam"),
    *("momentum_sam", "async_sam"),
)


# One of each kind; test_no_two_rows_are_the_same_method steps with all of them.
@pytest.mark.parametrize("method", KINDS)
def test_every_kind_of_method_trains_on_noisy_digits(method, tmp_path):
    scale = FAMILY[method].scale
    settings = settings_for(None, "digits", "mlp", method) | {"label_noise": 0.4, "epochs": 2}
    settings |= {"rho": None if scale is None else scale * 0.1, "rho_max": None}
    settings |= {"evaluate_every": 2, "checkpoint_every": 2}
    history = train(Config(**settings, out=tmp_path / "run"), show=False)
    assert np.all(np.isfinite([record["train_loss"] for record in history]))
    assert history[-1]["validation_accuracy"] > 20  # a guess is right in ten percent


def test_a_call_of_one_step_leaves_the_decision_to_the_host(tmp_path, monkeypatch):
    """Steps of the same kind, but without a conditional in the program."""
    look_sam = Config(method="look_sam", method_args={"every": "3"})
    assert sharp_period(look_sam) == 3
    assert sharp_period(Config(method="look_sam")) == 5
    settings = settings_for(None, "digits", "mlp", "sam")
    settings |= {
        "method": "sam",
        "sharp_every": 3,
        "epochs": 1,
        "train_size": 256,
        "rho": 0.1,
        "batch_size": 32,
    }
    decided = []

    class Recording(image_program.ImageProgram):
        def _train_step(self, state, arrays, row, traced, sharp):
            decided.append(sharp)
            return super()._train_step(state, arrays, row, traced, sharp)

    monkeypatch.setattr(image_program, "ImageProgram", Recording)
    history = {}
    for size in (1, 8):
        training_program._shared_program.cache_clear()
        config = Config(**settings, steps_per_dispatch=size, out=tmp_path / str(size))
        (history[size],) = train(config, show=False)
    assert decided == [True, False, None]  # one compilation each
    assert history[1]["sharp_steps"] == history[8]["sharp_steps"] == 3
    for name in ("train_loss", "sharp_gradient_norm", "validation_loss"):
        assert history[1][name] == pytest.approx(history[8][name], rel=1e-5)
    plain = Config(**settings | {"method": "sgd", "rho": None, "sharp_every": 1, "method_args": {}})
    (of_sgd,) = train(dataclasses.replace(plain, out=tmp_path / "sgd"), show=False)
    assert of_sgd["train_loss"] != pytest.approx(history[1]["train_loss"], rel=1e-4)


SGD = optax.sgd(0.1, momentum=0.9)


def make_method(method, steps=1, base=SGD):
    search = {"probe_every": 2, "alpha_max": 3.2, "num_alphas": 9}
    return method.make(0.3, Training(0.6, steps, search, base, 0.1, jax.random.key(0)))


def make_optimizer(method, steps=1, base=SGD):
    tx = make_method(method, steps, base)
    return optax.with_extra_args_support(tx if method.has_base else optax.chain(tx, base))


@pytest.mark.parametrize("base", [SGD, optax.adamw(0.1)], ids=["sgd", "adamw"])
@pytest.mark.parametrize("name", METHODS)
def test_the_first_state_does_not_depend_on_the_values_of_the_parameters(name, base):
    """So weights of a file can replace those that the state was made for."""
    init = make_optimizer(METHODS[name], base=base).init
    values = np.array([[0.3, -0.2, 0.5], [-1.0, 2.0, 0.1]], np.float32)
    chex.assert_trees_all_equal(*(init({"x": row}) for row in values))


@pytest.mark.parametrize("name", [n for n in METHODS if "groups" not in settings_ignored_by(n)])
def test_the_library_has_a_rule_for_groups_where_the_trainer_takes_them(name):
    xsam_jax.per_group(make_method(METHODS[name])).init({"x": np.ones(3, np.float32)})


def test_no_two_rows_are_the_same_method():
    def losses_fn(params):
        return jnp.sin(params["x"] * jnp.arange(1.0, 4.0)) + params["y"] ** 2

    def run(method, steps):
        tx = make_optimizer(method, steps)

        def value_fn(params):
            return losses_fn(params).mean()

        def step(params, state):
            point = xsam_jax.look_ahead(state, params) if method.looks_ahead else params
            grads = jax.grad(value_fn)(point)
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


def test_a_difference_is_more_than_two_standard_errors():
    # Variance 2 / 3 each, so the standard error of the difference is sqrt(2 * (2 / 3) / 4) = 0.58.
    values = np.array([0.0, 1.0, 1.0, 2.0])
    assert difference(values + 1.1, values).endswith("0.6: tie")
    assert difference(values + 1.2, values).endswith("0.6: more than two standard errors")
    assert difference(values - 1.2, values).endswith("0.6: more than two standard errors")
