"""What the papers' protocols need: other ascents, Dropout, image sizes, and the learning rate."""

import collections
import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from runs import digits, numbers

from examples.image_classification import program as image_program
from examples.image_classification.batches import DataSpec, Images
from examples.image_classification.config import Config
from examples.image_classification.models import make_model
from examples.training import program as training_program
from examples.training.ascent_gradients import ascent_gradient
from examples.training.optimizer import make_schedule
from examples.training.train import over_epochs, train

# --- Ascents along other gradients ---

GRADIENTS = np.random.default_rng(0).normal(0.3, 1.0, (1050, 3))  # of each image, two chunks
ROWS = np.arange(8)


def ascent(kind, batches=1):
    """The gradient of the ascent for a batch of the first eight images, and the rows it used."""
    used = []

    def gradient_of_row(row, key):
        jax.debug.callback(lambda row: used.extend(np.asarray(row).tolist()), row)
        return {"x": jnp.where(row[:, None] >= 0, jnp.asarray(GRADIENTS)[row], 0.0).sum(axis=0)}

    gradient = {"x": jnp.asarray(GRADIENTS[ROWS].mean(axis=0))}
    key = jax.random.key(0)
    batch = jnp.asarray(ROWS)
    found = ascent_gradient(kind, gradient, gradient_of_row, len(GRADIENTS), batch, batches, key)
    jax.effects_barrier()
    return np.asarray(found["x"]), [row for row in used if row >= 0]


@pytest.mark.usefixtures("x64")
def test_ascents_along_parts_of_the_gradient():
    """Section 4 of the F-SAM paper, in NumPy."""
    g, full = GRADIENTS[ROWS].mean(axis=0), GRADIENTS.mean(axis=0)
    projection = (g @ full) / (full @ full) * full
    cosine = g @ full / np.linalg.norm(g) / np.linalg.norm(full)
    expected = {"full": projection, "noise": g - projection, "noise_eq8": g - cosine * full}
    for kind, value in expected.items():
        found, used = ascent(kind)
        np.testing.assert_allclose(found, value, rtol=1e-9)
        assert sorted(used) == list(range(1050))
    assert abs(expected["noise"] @ full) < 1e-9 < abs(expected["noise_eq8"] @ full)


@pytest.mark.usefixtures("x64")
def test_ascents_along_other_batches():
    found, used = ascent("other_batch")
    assert len(set(used)) == 8
    assert set(used) != set(ROWS.tolist())
    np.testing.assert_allclose(found, GRADIENTS[used].mean(axis=0), rtol=1e-9)
    for batches, others in ((4, 24), (120, 952), (200, 1042)):  # no more than there are
        found, used = ascent("larger_batch", batches)
        assert len({*used, *ROWS.tolist()}) == others + 8
        np.testing.assert_allclose(found, GRADIENTS[[*ROWS, *used]].mean(axis=0), rtol=1e-9)


@pytest.mark.parametrize("method", ["sam_full", "sam_larger_batch"])
def test_the_trainer_ascends_along_other_gradients(method, tmp_path):
    common = {"epochs": 1, "train_size": 128, "rho": 0.3}
    (of_sam,) = train(digits(tmp_path / "sam", method="sam", **common), show=False)
    (found,) = train(digits(tmp_path / method, method=method, **common), show=False)
    # The gradient of the batch is the same in the first of two steps, and the one taken another.
    assert found["train_loss"] == pytest.approx(of_sam["train_loss"], rel=0.05)
    assert found["sharp_gradient_norm"] != pytest.approx(of_sam["sharp_gradient_norm"], rel=1e-4)


def test_other_gradients_need_all_images_in_memory():
    config = Config(model="mlp", method="sam_full", rho=0.1, batch_size=8)
    program, traced = (
        image_program.ImageProgram(config, SPEC),
        training_program.TracedSettings.of(config),
    )
    streamed = Images(*(array[None] for array in IMAGES))
    with pytest.raises(ValueError, match="sam_full needs all images in memory"):
        program.train_steps(program.init(traced), None, streamed, traced)


def test_sam_with_several_steps_has_the_norms_of_its_gradients(tmp_path):
    config = digits(tmp_path, method="sam", epochs=1, train_size=128, ascent_steps=2)
    (found,) = train(config, show=False)
    assert found["gradient_norm_0"] == pytest.approx(found["gradient_norm"], rel=1e-5)
    assert found["gradient_norm_2"] == pytest.approx(found["sharp_gradient_norm"], rel=1e-5)
    norms = [found[f"gradient_norm_{i}"] for i in range(3)]
    assert len({round(norm, 4) for norm in norms}) == 3


# --- Networks and images ---

SPEC = DataSpec((8, 8, 1), 10, (0.0,), (1.0,), 3)
IMAGES = Images(
    np.random.default_rng(0).integers(0, 255, (8, 8, 8, 1), np.uint8), np.arange(8, dtype=np.int32)
)


def one_step(spec, images, monkeypatch, **changes):
    """The state and the metrics of a step of a narrow VGG."""
    cut = {"blocks": (1,), "width": 4, "hidden": (64,)}
    monkeypatch.setattr(image_program, "make_model", functools.partial(make_model, **cut))
    config = Config(**{"model": "vgg11", "method": "sam", "batch_size": 8, "epochs": 2, **changes})
    program, traced = (
        image_program.ImageProgram(config, spec),
        training_program.TracedSettings.of(config),
    )
    rows = np.arange(8, dtype=np.int32)[None]
    return program.train_steps(program.init(traced), images, rows, traced)


def test_all_passes_of_a_step_drop_the_same_units(monkeypatch):
    """At the smallest of radii both gradients are the same. Other units would give others."""
    _, metrics = one_step(SPEC, IMAGES, monkeypatch, rho=1e-6)
    np.testing.assert_allclose(metrics["gradient_norm"], metrics["sharp_gradient_norm"], rtol=1e-3)
    _, other_seed = one_step(SPEC, IMAGES, monkeypatch, rho=1e-6, seed=1)
    assert other_seed["gradient_norm"] != metrics["gradient_norm"]


@pytest.mark.parametrize(
    "parts", [{"accumulate": 2}, {"groups": 2}, {"groups": 2, "accumulate": 2}]
)
def test_parts_of_a_batch_drop_units_of_their_own(parts, monkeypatch):
    seen, model_with = [], image_program.ImageProgram.training_model

    def recorded(self, params, statistics, key):
        jax.debug.callback(
            lambda data: seen.append(np.asarray(data).tobytes()), jax.random.key_data(key)
        )
        return model_with(self, params, statistics, key)

    monkeypatch.setattr(image_program.ImageProgram, "training_model", recorded)
    one_step(SPEC, IMAGES, monkeypatch, rho=0.1, **parts)
    jax.effects_barrier()
    # Each part has a key, for the pass at the parameters and for the one after the ascent.
    assert sorted(collections.Counter(seen).values()) == [2, 2]


def test_units_are_dropped_in_every_step_anew(monkeypatch):
    config = Config(model="vgg11", method="sgd", batch_size=8, epochs=2, learning_rate=1e-9)
    cut = {"blocks": (1,), "width": 4, "hidden": (64,)}
    monkeypatch.setattr(image_program, "make_model", functools.partial(make_model, **cut))
    program, traced = (
        image_program.ImageProgram(config, SPEC),
        training_program.TracedSettings.of(config),
    )
    rows = np.tile(np.arange(8, dtype=np.int32), (2, 1))
    _, metrics = program.train_steps(program.init(traced), IMAGES, rows, traced)
    first, second = metrics["train_loss"]
    assert abs(first - second) > 1e-4  # the parameters do not move


def test_a_network_sees_images_of_the_size_asked_for(monkeypatch):
    """A larger image, each pixel of which is four, is the image again."""
    larger = IMAGES._replace(pixels=IMAGES.pixels.repeat(2, axis=1).repeat(2, axis=2))
    config = Config(model="mlp", method="sgd", batch_size=8, image_size=8)
    program, traced = (
        image_program.ImageProgram(config, SPEC),
        training_program.TracedSettings.of(config),
    )
    state, rows = program.init(traced), np.arange(8, dtype=np.int32)
    expected, _ = program.predict(state, IMAGES, rows)
    found, _ = program.predict(state, larger, rows)
    # The triangle of the filter reaches into the neighbours.
    shrunk = jax.image.resize(larger.pixels / 255.0, (8, 8, 8, 1), "bilinear")
    assert 0 < np.abs(shrunk - IMAGES.pixels / 255.0).max() < 0.5
    correlation = np.corrcoef(np.ravel(found), np.ravel(expected))[0, 1]
    assert 0.9 < correlation < 1


# --- The learning rate, and metrics over epochs ---


def test_the_cosine_falls_per_step_or_per_epoch():
    config = Config(method="sgd", epochs=4, learning_rate=0.2)
    per_step = make_schedule(config, 5)
    per_epoch = make_schedule(dataclasses.replace(config, cosine_every="epoch"), 5)
    for step in range(20):
        expected = 0.1 * (1 + np.cos(np.pi * np.array([step, step // 5 * 5]) / 20))
        np.testing.assert_allclose([per_step(step), per_epoch(step)], expected, rtol=1e-5)


def test_the_last_record_has_the_best_epoch_and_the_mean_of_the_last_five(tmp_path):
    history = train(digits(tmp_path, method="sgd", epochs=7), show=False)
    accuracies = [record["validation_accuracy"] for record in history]
    last = history[-1]
    assert last["best_validation_accuracy"] == max(accuracies)
    assert accuracies[last["best_epoch"] - 1] == max(accuracies)
    assert last["last_five_validation_accuracy"] == pytest.approx(np.mean(accuracies[-5:]))
    assert "best_epoch" not in history[-2]
    # Without validation images it is the test that is evaluated in each epoch.
    records = [{"epoch": 1, "test_accuracy": 3.0}, {"epoch": 2}, {"epoch": 3, "test_accuracy": 2.0}]
    assert over_epochs(records, "accuracy") == {
        "best_epoch": 1,
        "best_test_accuracy": 3.0,
        "last_five_test_accuracy": 2.5,
    }
    assert numbers(history)[-1]["epoch"] == 7
