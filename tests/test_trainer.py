"""The trainer: equal results after interruptions and on several devices, and clear errors."""

import dataclasses
import functools
import itertools
import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from runs import (
    ROOT,
    arguments,
    assert_bit_equal,
    assert_equal_to_rounding,
    digits,
    environment,
    last_state,
    numbers,
    records,
    uses_whole,
)
from test_models import ALIKE, SMALL

from examples.image_classification import __main__ as entry
from examples.image_classification import program as image_program
from examples.image_classification.augment import AUGMENTATIONS
from examples.image_classification.batches import (
    Batches,
    DataSpec,
    Images,
    check_batch_size,
    schedule_rows,
)
from examples.image_classification.command_line import CHOICES, read_config
from examples.image_classification.config import Config
from examples.image_classification.data import DATASETS, load
from examples.image_classification.models import MODELS, make_model
from examples.image_classification.presets import PRESETS, configure
from examples.training import program as training_program
from examples.training import train as trainer
from examples.training.methods import COMBINATIONS
from examples.training.optimizer import make_optimizer, make_schedule, record_norm
from examples.training.settings import check
from examples.training.train import train
from xsam_jax import xsam

CIFAR = DataSpec((32, 32, 3), 10, (0.5,) * 3, (0.25,) * 3, steps_per_epoch=3)
QUICK = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}


# --- Results of a run ---


@uses_whole
def test_a_run_learns_the_digits(whole):
    _, history = whole
    assert history[-1]["test_accuracy"] > 80  # guessing gives 10
    assert history[-1]["train_loss"] < 0.5 < history[0]["train_loss"]


@uses_whole
def test_a_run_leaves_metrics_events_a_checkpoint_and_a_picture(whole):
    config, history = whole
    assert records(config.out) == history
    assert [record["epoch"] for record in history] == list(range(1, 41))
    assert all(np.isfinite(list(record.values())).all() for record in history)
    assert {"validation_accuracy", "alpha", "psi", "gradient_norm"} <= history[3].keys()
    # The test images wait until the end where there are validation images.
    assert ["test_accuracy" in record for record in history] == [False] * 39 + [True]
    assert (config.out / "curves.png").stat().st_size > 10_000
    assert list(config.out.glob("events.out.tfevents.*"))
    saved = json.loads((config.out / "config.json").read_text())
    assert saved["rho"] == config.rho
    assert last_state(config.out)["step"] == 200
    rate = 0.05 * (1 + math.cos(math.pi * 4 / 200)) / 2  # of the fifth step, the epoch's last
    np.testing.assert_allclose(history[0]["learning_rate"], rate, rtol=1e-5)


def test_evaluate_every_and_checkpoint_every_set_the_epochs(tmp_path):
    config = digits(tmp_path, method="sgd", epochs=5)
    history = train(dataclasses.replace(config, evaluate_every=2, checkpoint_every=3), show=False)
    evaluated = ["validation_loss" in record for record in history]
    assert evaluated == [False, True, False, True, True]
    saved = sorted(int(path.name) for path in (tmp_path / "checkpoints").iterdir())
    assert saved == [15, 25]  # five steps an epoch


def test_every_step_draws_new_augmentation(tmp_path):
    losses = {}
    for names in ((), ("cutout",)):
        # One batch, whose order does not matter, and weights that stay.
        config = digits(tmp_path / str(names), method="sgd")
        config = dataclasses.replace(config, train_size=64, learning_rate=1e-9, augmentation=names)
        losses[names] = [record["train_loss"] for record in train(config, show=False)]
    np.testing.assert_allclose(losses[()], losses[()][0], rtol=1e-5)
    values = [*losses["cutout",], losses[()][0]]
    assert np.min(np.diff(np.sort(values))) > 1e-4


def test_equal_seeds_give_bit_equal_runs(tmp_path):
    configs = [digits(tmp_path / str(i), epochs=1, seed=i // 2) for i in range(3)]
    first, again, other = (numbers(train(config, show=False)) for config in configs)
    assert first == again
    assert first[0]["train_loss"] != other[0]["train_loss"]
    assert_bit_equal(*(last_state(config.out) for config in configs[:2]))


@pytest.mark.parametrize(("groups", "accumulate"), [(1, 1), (1, 4), (4, 1), (4, 4)])
def test_a_step_of_sam_matches_float64(groups, accumulate, tmp_path):
    # The whole data set is one batch, so that its order matters for groups alone.
    config = digits(
        tmp_path / "run", method="sam", rho=0.1, train_size=64, validation_size=0, epochs=1
    )
    config = dataclasses.replace(config, label_smoothing=0.1, weight_decay=0.01)
    config = dataclasses.replace(config, groups=groups, accumulate=accumulate)
    data = load(config)
    spec = Batches(data, config).spec
    initial = config.make_program(spec).init(training_program.TracedSettings.of(config)).params
    (record,) = train(config, show=False)
    final = last_state(config.out)["params"]

    (order,) = schedule_rows(64, 64, config.seed, epoch=0)
    pixels = data.train.pixels.reshape(64, -1)[order] / 255.0
    pixels = (pixels - data.mean) / data.std
    targets = 0.9 * np.eye(10)[data.train.labels[order]] + 0.01

    def loss_fn(params, group):
        hidden, targets = group
        for name in ("first", "second", "head"):
            hidden = hidden if name == "first" else jax.nn.relu(hidden)
            hidden = hidden @ params[name]["kernel"] + params[name]["bias"]
        return -jnp.mean(jnp.sum(targets * jax.nn.log_softmax(hidden), axis=1))

    def norm(grads):
        return np.sqrt(sum(np.sum(np.square(grad)) for grad in jax.tree.leaves(grads)))

    def sam(params, group):
        grads = jax.grad(loss_fn)(params, group)
        there = jax.tree.map(lambda p, g: p + 0.1 * g / norm(grads), params, grads)
        return jax.grad(loss_fn)(there, group)

    with jax.enable_x64(True):
        params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), nnx.to_pure_dict(initial))
        loss, grads = jax.value_and_grad(loss_fn)(params, (pixels, targets))
        parts = zip(np.split(pixels, groups), np.split(targets, groups), strict=True)
        sharp = jax.tree.map(lambda *leaves: sum(leaves) / groups, *(sam(params, g) for g in parts))
        updates = jax.tree.map(lambda p, g: -0.05 * (g + 0.01 * p), params, sharp)
    np.testing.assert_allclose(record["train_loss"], loss, rtol=1e-5)
    np.testing.assert_allclose(record["gradient_norm"], norm(grads), rtol=1e-5)
    np.testing.assert_allclose(record["sharp_gradient_norm"], norm(sharp), rtol=1e-5)
    moved = jax.tree.map(np.subtract, final, params)
    # Parameters of size 0.3 have a rounding error of 3e-8.
    chex.assert_trees_all_close(moved, updates, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, {"probe_every": 5}),
        ({"probe_every": 3, "probe_batch_size": 2},) * 2,
        ({"probe_every": 3, "probe_batch_size": "all"},) * 2,
        ({"probe_every": 3, "search": "section"},) * 2,
    ],
    ids=["defaults", "chunk", "all", "section"],
)
def test_search_options_reach_xsam(options, expected):
    """By default XSAM probes once per epoch."""
    config = digits(None, alpha_max=1.5, **options)
    search = {"alpha_max": 1.5, "num_alphas": 5} | expected
    schedule = optax.cosine_decay_schedule(0.05, 15)
    base = optax.chain(optax.add_decayed_weights(1e-3), optax.sgd(schedule, momentum=0.9))
    ours = make_optimizer(config, 5, jax.random.key(0))
    theirs = optax.chain(xsam(0.3, 0.6, **search), record_norm(), base)

    def program(tx):
        def update(params):
            return tx.update(params, tx.init(params), params, value_fn=lambda p: jnp.sum(p**4))

        return str(jax.make_jaxpr(update)(jnp.ones(3)))

    assert program(ours) == program(theirs)


def test_esam_draws_from_the_seed():
    config = digits(None, method="esam")
    program = image_program.ImageProgram(
        config, CIFAR._replace(image_shape=(8, 8, 1), mean=(0.0,), std=(1.0,))
    )
    params = jnp.arange(1.0, 9.0)

    def update(seed):
        tx = program._make_optimizer(
            training_program.TracedSettings.of(dataclasses.replace(config, seed=seed))
        )
        functions = {"value_fn": lambda p: jnp.sum(p**4), "losses_fn": lambda p: p**4}
        return tx.update(params, tx.init(params), params, **functions)[0]

    np.testing.assert_array_equal(update(0), update(0))
    assert np.any(update(0) != update(1))


def test_sharp_steps_of_the_optimizer_state_are_logged(tmp_path, monkeypatch):
    """With a double of a method that counts its sharpness-aware steps."""
    count = optax.GradientTransformation(
        lambda params: {"sharp_steps": jnp.zeros((), jnp.int32)},
        lambda updates, state, params=None: (updates, {"sharp_steps": state["sharp_steps"] + 1}),
    )
    make = training_program.make_optimizer
    monkeypatch.setattr(
        training_program, "make_optimizer", lambda *args: optax.chain(make(*args), count)
    )
    # Label smoothing makes it another program than those of other tests.
    config = digits(tmp_path, method="sgd", epochs=2, label_smoothing=0.02)
    assert [record["sharp_steps"] for record in train(config, show=False)] == [5, 10]


@pytest.mark.parametrize("warmup", [0, 2])
def test_the_learning_rate_rises_and_falls(warmup):
    config = Config(epochs=10, learning_rate=0.4, warmup_epochs=warmup)
    schedule = make_schedule(config, steps_per_epoch=5)
    start = 5 * warmup
    for step in range(51):
        fall = 0.2 * (1 + math.cos(math.pi * (step - start) / (50 - start)))
        expected = 0.4 * step / start if step < start else fall
        np.testing.assert_allclose(schedule(step), expected, rtol=1e-5, atol=1e-7)


def test_adamw_decays_weights_outside_the_gradient():
    config = Config(method="sgd", optimizer="adamw", weight_decay=0.3, learning_rate=0.01)
    tx = make_optimizer(config, steps_per_epoch=10, key=jax.random.key(0))
    params = {"w": jnp.array([1.0, -2.0])}
    grads = {"w": jnp.array([0.5, 0.5])}
    updates, _ = tx.update(grads, tx.init(params), params)
    # The first step of Adam is the sign of the gradient.
    np.testing.assert_allclose(
        updates["w"], -0.01 * (np.array([1, 1]) + 0.3 * params["w"]), rtol=1e-4
    )


def small_program(name, method, monkeypatch):
    """The program of a small network on images of CIFAR, and abstract arguments of a step."""
    monkeypatch.setattr(image_program, "make_model", functools.partial(make_model, **SMALL[name]))
    search = {"rho_max": 0.2, "num_alphas": 2} if method == "xsam" else {}
    config = Config(
        model=name, dataset="cifar10", method=method, rho=0.1, batch_size=2, bf16=True, **search
    )
    program, traced = (
        image_program.ImageProgram(config, CIFAR),
        training_program.TracedSettings.of(config),
    )
    return program, jax.eval_shape(program.init, traced), traced


def test_groups_one_after_the_other_close_over_the_running_statistics(monkeypatch):
    """XSAM evaluates its losses within a conditional."""
    monkeypatch.setattr(
        image_program, "make_model", functools.partial(make_model, **SMALL["resnet8"])
    )
    config = Config(model="resnet8", dataset="cifar10", method="xsam", rho=0.1, rho_max=0.2)
    config = dataclasses.replace(config, batch_size=4, groups=2, accumulate=2, num_alphas=2)
    program, traced = (
        image_program.ImageProgram(config, CIFAR),
        training_program.TracedSettings.of(config),
    )
    state = jax.eval_shape(program.init, traced)
    images = Images(np.zeros((4, 32, 32, 3), np.uint8), np.zeros(4, np.int32))
    lowered = program.train_steps.lower(state, images, np.zeros((1, 4), np.int32), traced)
    # The conditional of the search. The choice of the platform alone has two cases.
    assert lowered.as_text().count("stablehlo.case") > 2


# ReLU after convolutions with a projection, the same without shortcut, attention.
COMPILED = ["resnet18", "vgg11", "vit_ti"]


@pytest.mark.parametrize("name", sorted(SMALL.keys() - ALIKE - {"resnet8_half", *COMPILED}))
def test_every_model_traces_a_step_of_sam(name, monkeypatch):
    program, state, traced = small_program(name, "sam", monkeypatch)
    images = Images(np.zeros((2, 32, 32, 3), np.uint8), np.zeros(2, np.int32))
    new, metrics = jax.eval_shape(
        program.train_steps, state, images, np.zeros((1, 2), np.int32), traced
    )
    assert jax.tree.structure(new) == jax.tree.structure(state)
    for old, now in zip(*map(jax.tree.leaves, (state, new)), strict=True):
        assert (old.shape, old.dtype) == (now.shape, now.dtype)
    assert {value.dtype for value in metrics.values()} == {np.dtype("float32")}


@pytest.mark.parametrize("name", COMPILED)
def test_a_step_of_xsam_updates_the_model(name, monkeypatch):
    program, abstract_state, traced = small_program(name, "xsam", monkeypatch)
    rng = np.random.default_rng(0)
    # Compiling the initialization would take as long as all the rest.
    state = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), abstract_state)
    params = jax.tree.map(
        lambda leaf: rng.normal(0.0, 0.3, leaf.shape).astype(np.float32), state.params
    )
    statistics = jax.tree.map(np.ones_like, state.statistics)
    state = state._replace(params=params, statistics=statistics)
    pixels = rng.integers(0, 256, (2, 32, 32, 3), np.uint8)
    arrays, row = Images(pixels, np.array([3, 7], np.int32)), np.array([0, 1], np.int32)
    train_step = program.train_steps.lower(state, arrays, row[None], traced).compile(QUICK)
    new, metrics = train_step(state, arrays, row[None], traced)
    assert all(np.isfinite(value).all() for value in metrics.values()), metrics
    moved = jax.tree.map(lambda x, y: np.any(x != y), params, new.params)
    assert np.mean(jax.tree.leaves(moved)) > 0.5  # what BatchNorm subtracts again may rest
    for old, now in zip(*map(jax.tree.leaves, (statistics, new.statistics)), strict=True):
        assert now.dtype == np.float32
        assert np.any(old != now)
    evaluate = program.evaluate.lower(new, arrays, row).compile(QUICK)
    assert evaluate(new, arrays, np.array([0, -1], np.int32))["count"] == 1
    # By the running statistics, an image's loss does not depend on what is beside it.
    rows = [np.array(row, np.int32) for row in ([0, 0], [1, 1], [0, 1])]
    first, second, both = (evaluate(new, arrays, row)["loss"] for row in rows)
    np.testing.assert_allclose((first + second) / 2, both, rtol=1e-3)


def test_bf16_computes_convolutions_and_keeps_float32_parameters():
    config = Config(model="resnet8", dataset="cifar10", method="sam", rho=0.1, batch_size=2)
    texts = []
    for bf16 in (False, True):
        program = image_program.ImageProgram(dataclasses.replace(config, bf16=bf16), CIFAR)
        state = jax.eval_shape(program.init, training_program.TracedSettings.of(config))
        assert {leaf.dtype for leaf in jax.tree.leaves(state.params)} == {np.dtype("float32")}
        arrays = Images(jnp.zeros((2, 32, 32, 3), jnp.uint8), jnp.zeros(2, jnp.int32))
        arguments = (
            state,
            arrays,
            jnp.zeros((1, 2), jnp.int32),
            training_program.TracedSettings.of(config),
        )
        texts.append(program.train_steps.lower(*arguments).as_text())
    convolutions = [re.findall(r"stablehlo.convolution.*-> tensor<[^>]*x(\w+)>", t) for t in texts]
    assert [set(kinds) for kinds in convolutions] == [{"f32"}, {"bf16"}]


# --- Devices ---

DIVIDED = """
import sys
from pathlib import Path
import jax
import pytest
from runs import stop_at
from examples.training import devices
from test_trainer import divided, train_narrow
copies, sharded = divided(Path(sys.argv[1]))
train_narrow(copies)
for fsdp in (False, True):
    print(devices.choose_sharding((10, 256), fsdp).shard_shape((10, 256)))
with pytest.MonkeyPatch.context() as patch:
    stop_at(2, sharded, patch)
"""


def divided(folder):
    """Runs of a few steps: SAM with BatchNorm in parts, XSAM in groups, parameters sharded."""
    common = {"train_size": 64, "validation_size": 0, "batch_size": 32}
    copies = digits(folder / "copies", **common, method="sam", model="resnet8", epochs=1)
    copies = dataclasses.replace(copies, accumulate=2)
    sharded = {"fsdp": True, "augmentation": ("crop", "resized_crop"), "epochs": 2, "num_alphas": 3}
    return copies, digits(folder / "sharded", **common, **sharded, groups=8)


def train_narrow(config):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(image_program, "make_model", functools.partial(make_model, width=4))
        return train(config, show=False)


def test_eight_devices_match_one(tmp_path):
    process = subprocess.run(
        [sys.executable, "-c", DIVIDED, str(tmp_path / "eight")],
        env=environment(
            JAX_NUM_CPU_DEVICES="8",
            PYTHONPATH=f"{ROOT}{os.pathsep}{ROOT / 'tests'}",
        ),
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0, process.stderr
    copies, sharded = divided(tmp_path / "one")
    assert_equal_to_rounding(records(tmp_path / "eight" / "copies"), train_narrow(copies))
    # Sharded over eight devices this one stops after its first epoch, and goes on with one.
    assert process.stdout.split("\n")[:2] == ["(10, 256)", "(10, 32)"]
    resumed = dataclasses.replace(sharded, out=tmp_path / "eight" / "sharded")
    assert records(resumed.out)[-1]["step"] == 2
    assert_equal_to_rounding(train(resumed, show=False), train(sharded, show=False))


# --- Errors and settings ---


def error_line(capsys, *words):
    """Returns the error of a wrong command line, a single line."""
    try:
        status = entry.main(list(words))
    except SystemExit as end:
        status = end.code
    assert status == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    return line


@pytest.mark.parametrize(
    ("words", "messages"),
    [
        (
            ["--model", "resnet81"],
            ["unknown model 'resnet81'", "'resnet8'", "densenet121", "vit_ti"],
        ),
        (["--dataset", "cifar11"], ["unknown dataset 'cifar11'", "'cifar10'", "imagenet2012"]),
        (["--method", "xsan"], ["unknown method 'xsan'", "'xsam'", "friendly_sam", "xsam+asam"]),
        (
            ["--preset", "cifar10-resnet18-xsan"],
            ["did you mean 'cifar10-resnet18-xsam' or", "valid (--preset list)"],
        ),
        (["--method", "gsam", "--method-args", "alfa", "1"], ["'alfa'", "'alpha'"]),
        (["--method", "gsam", "--method-args", "alpha", "x"], ["alpha must be a number", "'x'"]),
        (["--augmentation", "crob"], ["'crob'", "'crop'"]),
        (["--rho", "0,1"], ["--rho", "0,1"]),
        (["--epocs", "3"], ["--epocs"]),
        (["--method-args", "decay"], ["--method-args"]),
        (["--augmentation", "crop="], ["augmentation 'crop=': crop takes no number"]),
        (["--augmentation", "cutout="], ["'cutout='", "the number must be above 0"]),
        (["--distributed-timeout", "0"], ["distributed_timeout must be at least 1"]),
        (["--rho", "-1"], ["rho must be above 0, got -1"]),
        (["--epochs", "0"], ["epochs must be at least 1, got 0"]),
        (["--label-noise", "1"], ["label_noise must be at least 0 and below 1"]),
        (["--warmup-epochs", "60"], ["warmup_epochs", "fewer than the 60 epochs"]),
        (["--rho-max", "None"], ["xsam needs --rho-max"]),
        (["--seed", "4294967296"], ["seed must be at least 0 and below 2**32"]),
        (["--rho", "None"], ["xsam needs --rho"]),
        (
            ["--method", "sgd", "--rho", "0.1"],
            ["sgd does not use --rho: leave it out", "no ascent"],
        ),
        (["--method", "sam", "--rho-max=0.1"], ["sam does not use --rho-max", "only XSAM"]),
        (
            ["--method", "gsam", "--ascent-steps", "2"],
            ["gsam does not use --ascent-steps", "fixed"],
        ),
        (
            ["--method", "sam", "--probe-every", "5"],
            ["sam does not use --probe-every", "only XSAM"],
        ),
        (["--method", "sam", "--alpha-max", "3"], ["sam does not use --alpha-max", "only XSAM"]),
        (["--method", "sgd", "--num-alphas", "5"], ["sgd does not use --num-alphas", "only XSAM"]),
        (["--method", "sam", "--probe-batch-size", "2"], ["sam does not use --probe-batch-size"]),
        (
            ["--search", "section", "--probe-batch-size", "2"],
            ["the section search does not use --probe-batch-size"],
        ),
        (["--method", "sam", "--search", "section"], ["sam does not use --search", "only XSAM"]),
        (["--probe-batch-size", "0"], ["probe_batch_size must be all or at least 1, got 0"]),
        (["--groups", "5"], ["groups 5 must divide the batch_size 64"]),
        (["--groups", "4", "--accumulate", "2"], ["accumulate must be 1, or 4 like groups", "2"]),
        (["--accumulate", "0"], ["accumulate must be at least 1, got 0"]),
        (["--method", "sgd", "--groups", "2"], ["sgd does not use --groups", "no ascent"]),
        (["--method", "look_sam", "--groups", "2"], ["look_sam does not use --groups", "rule"]),
        (["--method", "eigen_sam", "--groups", "2"], ["eigen_sam does not use --groups", "rule"]),
        (["--method", "decoupled_wsam", "--groups", "2"], ["wsam does not use --groups", "rule"]),
        (["--method", "esam", "--accumulate", "2"], ["esam does not use --accumulate"]),
        (["--optimizer", "adamw", "--momentum", "0.5"], ["adamw does not use --momentum", "SGD"]),
        (["--data-dir", "nowhere"], ["digits does not use --data-dir", "scikit-learn"]),
        (["--batch-size", "2000"], ["batch_size", "2000", "1000"]),
        (["--train-size", "5000"], ["train_size", "5000"]),
        (["--dataset", "cifar10", "--data-dir", "nowhere"], ["nowhere", "--data-dir", "download"]),
    ],
    ids=lambda words: " ".join(words) if words[0].startswith("--") else "",
)
def test_wrong_options_are_errors_of_one_line(capsys, monkeypatch, tmp_path, words, messages):
    monkeypatch.chdir(tmp_path)
    line = error_line(capsys, *words)
    assert line.startswith("image_classification: error: ")
    for message in messages:
        assert message in line
    assert not list(tmp_path.iterdir())  # nothing is left of it


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"optimizer": "adam"}, "optimizer must be 'sgd' or 'adamw', got 'adam'"),
        ({"bf16": "no"}, "bf16 must be bool, got 'no'"),
        ({"bf16": 1}, "bf16 must be bool, got 1"),
        ({"epochs": "3"}, "epochs must be int, got '3'"),
        ({"epochs": 2.0}, "epochs must be int, got 2.0"),
        ({"epochs": True}, "epochs must be int, got True"),
        ({"train_size": 2.5}, r"train_size must be int \| None, got 2.5"),
        ({"rho": "0.1"}, r"rho must be float \| None, got '0.1'"),
        ({"learning_rate": None}, "learning_rate must be float, got None"),
        ({"learning_rate": math.nan}, "learning_rate must be above 0, got nan"),
        ({"preset": "../x"}, "unknown preset '../x'"),
        ({"weight_decay": math.inf}, "weight_decay must be at least 0 and finite, got inf"),
        ({"augmentation": ("crop", 3)}, r"augmentation must be tuple\[str, ...\]"),
        ({"method_args": [1]}, r"method_args must be dict\[str, str\], got \[1\]"),
        ({"out": 3}, "out must be .*Path"),
    ],
    ids=str,
)
def test_a_config_from_python_is_checked_as_options_are(settings, message, tmp_path):
    config = dataclasses.replace(digits(tmp_path / "run"), **settings)
    with pytest.raises(ValueError, match=message):
        train(config, show=False)
    assert not (tmp_path / "run").exists()


def test_numbers_of_python_are_arguments_of_a_method():
    options = ["--method", "friendly_sam", "--method-args", "decay", "0.7"]
    assert configure(method="friendly_sam", method_args={"decay": 0.7}) == read_config(options)
    assert configure(epochs=3, rho=1) == read_config(["--epochs", "3", "--rho", "1"])


def test_a_batch_of_one_with_batchnorm_warns(tmp_path, capsys, monkeypatch):
    # Nothing is trained: the warning comes before.
    monkeypatch.setattr(trainer, "train_epoch", lambda run, state, *_: (state, {}))
    for model, warns in (("resnet8", True), ("mlp", False)):
        config = digits(tmp_path / model, model=model, method="sgd", epochs=1, batch_size=1)
        train(config)
        printed = capsys.readouterr().err
        assert ("BatchNorm has one image to normalize over" in printed) == warns


def test_an_indivisible_batch_size_suggests_the_nearest():
    with pytest.raises(ValueError, match=r"batch_size 125 .* 8 devices: take 120 or 128"):
        check_batch_size(125, images=1000, devices=8)
    with pytest.raises(ValueError, match=r"take 8$"):
        check_batch_size(5, images=1000, devices=8)


@uses_whole
def test_resuming_with_another_configuration_raises(whole, capsys):
    config, _ = whole
    line = error_line(capsys, *arguments(dataclasses.replace(config, rho=0.2)))
    assert f"{config.out} holds a run with rho 0.3, not 0.2" in line
    assert "--out" in line
    assert last_state(config.out)["step"] == 200


@pytest.mark.parametrize("name", ["preset", "dataset", "model", "method"])
def test_list_prints_all_names(name, capsys):
    with pytest.raises(SystemExit) as caught:
        entry.main([f"--{name}", "list"])
    assert not caught.value.code
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list({"preset": PRESETS, **CHOICES}[name])


@uses_whole
def test_the_docs_name_all_choices_and_metrics(whole):
    docs = (ROOT / "docs" / "training.md").read_text()
    names = [*MODELS, *DATASETS, *AUGMENTATIONS, *COMBINATIONS]
    for name in {*names, *whole[1][-1]}:
        name = re.sub("^(best|last_five)_(validation|test)_.*", r"\1_*", name)
        name = re.sub("^(validation|test)_.*", r"\1_*", name)
        assert f"`{name}`" in docs, name
    published = [name for name in PRESETS if not name.startswith("demo-")]
    for path in ("README.md", "CHANGELOG.md"):
        assert f"{len(published)} published settings" in (ROOT / path).read_text()


def test_options_override_the_defaults_of_a_preset():
    config = read_config(["--preset", "cifar10-resnet18-xsam"])
    assert (config.model, config.rho, config.rho_max, config.epochs) == (
        "resnet18",
        0.15,
        0.25,
        200,
    )
    same = read_config(["--dataset", "cifar10", "--model", "resnet18", "--method", "xsam"])
    assert dataclasses.replace(same, preset=config.preset) == config
    changed = read_config(["--preset", "cifar10-resnet18-xsam", "--rho", "0.2"])
    assert changed == dataclasses.replace(config, rho=0.2)


def test_another_method_drops_the_settings_of_the_preset_that_it_ignores():
    preset = ["--preset", "cifar100-resnet18-xsam-k3-rho0.04"]
    config = read_config([*preset, "--method", "gsam"])
    assert (config.rho, config.rho_max, config.ascent_steps) == (0.04, None, 1)
    assert read_config([*preset, "--method", "sgd"]).rho is None
    check(config)
    changed = read_config([*preset, "--method", "gsam", "--probe-every", "3"])
    with pytest.raises(ValueError, match="gsam does not use --probe-every"):
        check(changed)


def test_method_args_override_those_of_a_preset():
    preset = ["--preset", "fsam-cifar10-resnet18-friendly_sam"]
    assert read_config(preset).method_args == {"decay": "0.6", "sigma": "1.0"}
    changed = read_config([*preset, "--method-args", "decay", "0.7", "sigma", "0.5"])
    assert changed.method_args == {"decay": "0.7", "sigma": "0.5"}
    assert read_config([*preset, "--method", "sam"]).method_args == {}


def test_python_has_the_defaults_of_the_command_line():
    assert configure("cifar10-resnet18-sam") == read_config(["--preset", "cifar10-resnet18-sam"])
    options = ["--method", "gsam", "--epochs", "3"]
    assert configure(method="gsam", epochs=3) == read_config(options)
    changed = read_config(["--preset", "cifar10-resnet18-sam", "--model", "vgg11"])
    assert changed.preset is None  # it is another run


def test_python_overrides_a_preset_as_the_command_line_does(capsys):
    presets = ("demo-sam", "cifar10-resnet18-xsam", "fsam-cifar10-resnet18-friendly_sam")
    changes = [
        {"method": "sgd"},
        {"method": "asam", "epochs": 3},
        {"model": "resnet8"},
        {"dataset": "cifar100"},
        {"dataset": "digits", "model": "mlp", "method": "xsam", "rho": 0.2, "rho_max": 0.3},
        {"method_args": {"decay": "0.7"}},
    ]
    for preset, change in itertools.product(presets, changes):
        words = ["--preset", preset]
        for name, value in change.items():
            words.append(f"--{name.replace('_', '-')}")
            words += ["decay", "0.7"] if name == "method_args" else [str(value)]
        assert configure(preset, **change) == read_config(words), (preset, change)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"metod": "sam"}, "unknown setting 'metod'; did you mean 'method' or"),
        ({"method": 5}, "unknown method 5"),
        ({"preset": {"method": "sam"}}, "unknown preset {'method': 'sam'}"),
        ({"preset": "demo-san"}, "unknown preset 'demo-san'; did you mean 'demo-sam'"),
    ],
    ids=str,
)
def test_configure_names_mistakes(arguments, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        configure(**arguments)


def test_strings_become_paths(tmp_path):
    config = Config(out=str(tmp_path), data_dir="somewhere")
    assert (config.out, config.data_dir) == (tmp_path, Path("somewhere"))


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_is_a_command(name):
    config = Config(**PRESETS[name].settings, preset=name)
    check(config)
    make_optimizer(config, steps_per_epoch=400, key=jax.random.key(0))
