"""Analyses of trained networks: the loss, measurements, kept results, and errors."""

import csv
import dataclasses
import functools
import json
import shutil
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.flatten_util import ravel_pytree
from pictures import assert_is_a_picture
from scipy.special import log_softmax
from test_experiments import SAVE, fake_run, without_figures

from examples.experiments import analyze, evaluate, figures, measure_flatness
from examples.experiments.command_line import read_options
from examples.image_classification.batches import Batches, Stream
from examples.image_classification.config import Config
from examples.image_classification.data import load
from examples.image_classification.models import MODELS
from examples.image_classification.models.mlp import MLP
from examples.training.program import TracedSettings
from examples.training.run_folder import read_config_file
from examples.training.train import train
from xsam_jax import analysis
from xsam_jax.analysis.random_direction import random_tree

# The networks are trained and analyzed once.
pytestmark = pytest.mark.xdist_group("analyze")

WIDTH = 5
DATA = {"train_size": 120, "label_noise": 0.3}
LITTLE = {"images": 100, "batch-size": 50, "directions": 3, "probes": 3, "steps": 4, "points": 3}
FEW = [f"--{name}={value}" for name, value in LITTLE.items()]
FUNCTIONS = (
    "top_eigenvalues",
    "hessian_trace",
    "average_sharpness",
    "spectral_density",
    "loss_surface",
)
PICTURES = {"eigenvalues", "average_sharpness", "average_sharpness_element", "spectral_density"}
PICTURES |= {"landscapes"}
SHARPNESS = "average sharpness (filter-wise, radius 0.2)"


@pytest.fixture(scope="module", autouse=True)
def no_written_figures():
    """Draws figures without writing them."""
    with without_figures():
        yield


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Trains small networks with SGD, and with SAM in bfloat16, with two seeds each."""
    out = tmp_path_factory.mktemp("analyze")
    settings = [{"method": "sgd"}, {"method": "sam", "rho": 0.1, "bf16": True}]
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(MODELS, "tiny", partial(MLP, width=WIDTH))
        for setting in settings:
            for seed in (0, 1):
                path = out / setting["method"] / f"seed{seed}"
                common = {"model": "tiny", "epochs": 2, "batch_size": 40, "seed": seed, "out": path}
                train(Config(**DATA, **common, **setting), show=False)
        yield out


@pytest.fixture(scope="module")
def analyzed(trained):
    """Analyzes them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(figures, "save", SAVE)
        assert analyze.main([str(trained), *FEW, "--radius", "0.2"]) == 0
    return trained


@pytest.fixture
def runs(analyzed, tmp_path):
    """Copies the analyzed runs, to change them."""
    shutil.copytree(analyzed, tmp_path / "runs")
    return tmp_path / "runs"


@pytest.fixture
def calls(monkeypatch):
    """Records the names of the measurements that are made."""
    made = []

    def noted(name, function, *arguments, **options):
        made.append(name)
        return function(*arguments, **options)

    for name in FUNCTIONS:
        monkeypatch.setattr(analysis, name, partial(noted, name, getattr(analysis, name)))
    return made


@pytest.fixture
def no_figures(monkeypatch):
    """Leaves out the figures."""
    monkeypatch.setattr(analyze, "draw", lambda *_: {})


def written_pictures(capsys):
    """Returns the names of the pictures that an analysis reports."""
    lines = capsys.readouterr().out.splitlines()
    return {Path(line).stem for line in lines if line.endswith(".png")}


def read_table(out):
    with (out / "table.csv").open() as file:
        return list(csv.DictReader(file))


# --- The loss and the measurements ---


class Normalized(MLP):
    """An MLP with BatchNorm in front."""

    def __init__(self, layers, image_shape, num_classes):
        super().__init__(layers, image_shape, num_classes, width=WIDTH)
        self.norm = nnx.BatchNorm(image_shape[-1], rngs=layers.rngs)

    def __call__(self, images):
        return super().__call__(self.norm(images))


def test_the_loss_is_that_of_the_logits_in_evaluation_mode(monkeypatch):
    monkeypatch.setitem(MODELS, "normalized", Normalized)
    config = Config(model="normalized", method="sgd", train_size=8, batch_size=4)
    feed = Batches(load(config), config)
    program = config.make_program(feed.spec)
    state = program.init(TracedSettings.of(config))
    # Neither those of the batch nor the initial ones.
    state = state._replace(statistics=jax.tree.map(lambda leaf: leaf + 0.5, state.statistics))
    logits, labels = program.predict(state, feed.arrays["train"], jnp.arange(8))
    losses = -log_softmax(np.float64(logits), axis=1)[np.arange(8), np.array(labels)]
    loss = jax.jit(program.loss)
    images = feed.split("train")
    for part in (slice(0, 8), slice(0, 2)):
        batch = (state.statistics, images.select(part))
        assert float(loss(state.params, batch)) == pytest.approx(losses[part].mean(), rel=1e-5)


@functools.cache
def dense():
    """Returns the loss in float64 and its Hessian, as functions of flat parameters and data."""
    shapes = {"first": (64, WIDTH), "head": (WIDTH, 10), "second": (WIDTH, WIDTH)}
    tree = {n: {"bias": np.zeros(s[1]), "kernel": np.zeros(s)} for n, s in shapes.items()}
    unravel = ravel_pytree(tree)[1]

    def loss(flat, images, labels):
        tree, x = unravel(flat), images
        for name in ("first", "second"):
            x = jax.nn.relu(x @ tree[name]["kernel"] + tree[name]["bias"])
        x = x @ tree["head"]["kernel"] + tree["head"]["bias"]
        return -jax.nn.log_softmax(x)[jnp.arange(len(labels)), labels].mean()

    return jax.jit(loss), jax.jit(jax.hessian(loss))


def of_run(run, noisy=True, epoch=None):
    """Returns the arguments of `dense` for a run: parameters, images between 0 and 1, labels."""
    seed = read_config_file(run, Config).seed
    data = load(Config(**DATA | {"label_noise": 0.3 * noisy}, seed=seed)).train
    images = data.pixels[:100].reshape(100, -1) / 255
    return row(evaluate.restore(run, epoch=epoch).state.params), images, data.labels[:100]


def row(tree):
    return np.concatenate([np.float64(leaf).ravel() for leaf in jax.tree.leaves(tree)])


def test_curvature_matches_the_dense_hessian_with_the_labels_of_the_run(analyzed):
    rows = {found["method"]: found for found in read_table(analyzed / "analysis")}
    for method in ("sgd", "sam"):
        firsts, ratios, traces = [], [], []
        for seed in (0, 1):
            path = analyzed / method / f"seed{seed}"
            network = of_run(path)
            params = evaluate.restore(path).state.params
            keys = [jax.random.fold_in(jax.random.key(0), j) for j in range(3)]
            signs = [row(random_tree(key, params, jax.random.rademacher)) for key in keys]
            with jax.enable_x64(True):
                hessian = np.array(dense()[1](*network))
            values = np.linalg.eigvalsh(hessian)[::-1]
            firsts.append(values[0])
            ratios.append(values[0] / values[4])
            traces.append(np.mean([z @ hessian @ z for z in signs]))
        found = rows[method]
        assert float(found["λ1 mean"]) == pytest.approx(np.mean(firsts), rel=1e-4)
        assert float(found["λ1 std"]) == pytest.approx(np.std(firsts, ddof=1), rel=1e-2)
        assert float(found["λ1/λ5 mean"]) == pytest.approx(np.mean(ratios), rel=1e-3)
        assert float(found["trace mean"]) == pytest.approx(np.mean(traces), rel=1e-3)
    with jax.enable_x64(True):  # the labels without noise give another curvature
        clean = np.linalg.eigvalsh(dense()[1](*of_run(path, noisy=False)))[-1]
    assert abs(clean / firsts[1] - 1) > 0.01


def test_sharpness_is_the_mean_rise_in_filter_normalized_directions(analyzed):
    found = next(r for r in read_table(analyzed / "analysis") if r["method"] == "sgd")
    rises = []
    for seed in (0, 1):
        keys = [jax.random.fold_in(jax.random.key(0), j) for j in range(3)]
        path = analyzed / "sgd" / f"seed{seed}"
        params, *data = of_run(path)
        tree = evaluate.restore(path).state.params
        there = [params + 0.2 * row(analysis.random_direction(tree, key=key)) for key in keys]
        with jax.enable_x64(True):
            rises.append(np.mean([dense()[0](x, *data) for x in there]) - dense()[0](params, *data))
    with jax.enable_x64(True):
        losses = [dense()[0](*of_run(analyzed / "sgd" / f"seed{seed}")) for seed in (0, 1)]
    assert float(found["loss mean"]) == pytest.approx(np.mean(losses), rel=1e-5)
    assert float(found[f"{SHARPNESS} mean"]) == pytest.approx(np.mean(rises), rel=1e-3)


def test_networks_of_one_architecture_share_their_loss(trained):
    options = read_options(analyze.Options, [str(trained), *FEW])
    networks = [
        measure_flatness.make_network(path, evaluate.restore(path), options)
        for path in sorted(trained.glob("*/seed*"))
    ]
    assert len({network.loss for network in networks}) == 1
    assert len({network.digest for network in networks}) == 4


# --- Tables and figures ---


def test_the_table_has_a_row_a_group_and_figures_are_written(analyzed, capsys):
    assert analyze.main([str(analyzed), *FEW, "--radius", "0.2"]) == 0
    printed = capsys.readouterr().out
    lines = [line for line in printed.splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    columns = ["seeds", "loss", "λ1", "λ1/λ5", "trace", SHARPNESS, "element-wise"]
    assert cells[0][-7:] == columns
    assert [line[0] for line in cells[2:]] == ["sgd", "sam"]
    mean = float(read_table(analyzed / "analysis")[0]["λ1 mean"])
    assert float(cells[2][-5].split("±")[0]) == pytest.approx(mean, rel=5e-3)
    assert (analyzed / "analysis" / "table.md").read_text() in printed
    assert {path.stem for path in (analyzed / "analysis").glob("*.png")} == PICTURES
    for name in PICTURES:
        assert_is_a_picture(analyzed / "analysis" / f"{name}.png")


def test_slow_parts_can_be_left_out(runs, calls, tmp_path, capsys):
    none = ["--points", "0", "--steps", "0", "--seed", "1", "--out", str(tmp_path / "out")]
    assert analyze.main([str(runs / "sgd" / "seed0"), *FEW, *none]) == 0
    assert written_pictures(capsys) == PICTURES - {"spectral_density", "landscapes"}
    assert set(calls) == {"top_eigenvalues", "hessian_trace", "average_sharpness"}


def test_landscapes_are_of_the_first_seed_in_the_same_directions(analyzed):
    files = [analyzed / "sgd" / f"seed{seed}" / measure_flatness.ANALYSIS for seed in (0, 1)]
    first, second = (json.loads(file.read_text()) for file in files)
    assert {"landscape", "density"} & second.keys() == set()
    losses = np.array(first["landscape"]["result"])
    keys = jax.random.split(jax.random.key(0))
    tree = evaluate.restore(analyzed / "sgd" / "seed0").state.params
    x, y = (row(analysis.random_direction(tree, key=key)) for key in keys)
    y = y - (x @ y) / (x @ x) * x  # the axes are orthogonal
    params, *data = of_run(analyzed / "sgd" / "seed0")
    with jax.enable_x64(True):
        assert losses[1, 1] == pytest.approx(float(dense()[0](params, *data)), rel=1e-5)
        assert losses[0, 2] == pytest.approx(float(dense()[0](params + x - y, *data)), rel=1e-4)


def test_element_wise_sharpness_is_measured_too(analyzed):
    found = next(r for r in read_table(analyzed / "analysis") if r["method"] == "sgd")
    rises = []
    for seed in (0, 1):
        path = analyzed / "sgd" / f"seed{seed}"
        params, *data = of_run(path)
        tree = evaluate.restore(path).state.params
        for j in range(3):
            key = jax.random.fold_in(jax.random.key(0), j)
            direction = row(analysis.random_direction(tree, normalization="element", key=key))
            with jax.enable_x64(True):
                rises.append(
                    float(dense()[0](params + 0.2 * direction, *data) - dense()[0](params, *data))
                )
    assert float(found["element-wise mean"]) == pytest.approx(np.mean(rises), rel=1e-3)


def test_planes_profiles_and_gaps_of_a_kept_checkpoint(tmp_path, capsys):
    """In flat float64, along both gradients of the network after its first epoch."""
    path, rho, far = tmp_path / "sgd", 0.3, 0.9
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(MODELS, "tiny", partial(MLP, width=WIDTH))
        config = Config(**DATA, model="tiny", method="sgd", epochs=4, batch_size=40, out=path)
        train(dataclasses.replace(config, keep_epochs=(1,)), show=False)
        options = ["--plane", "--profile", "--gap", f"--rho={rho}", f"--rho-max={far}", "--epoch=1"]
        assert analyze.main([str(path), *FEW, "--steps=0", *options]) == 0
        assert sorted(int(p.name) for p in (path / "checkpoints").glob("[0-9]*")) == [3, 9, 12]
        params, *data = of_run(path, epoch=1)
    pictures = {"planes", "loss_over_alpha", "gradient_gap"}
    table = (path / "analysis_epoch1" / "table.md").read_text()
    assert "1 run, after epoch 1, the first" in table
    assert "Ascents of length 0.3, distances up to 0.9." in table
    assert written_pictures(capsys) == PICTURES - {"spectral_density"} | pictures
    found = json.loads((path / measure_flatness.ANALYSIS).read_text())
    found = {name: np.array(part["result"]) for name, part in found.items()}
    with jax.enable_x64(True):
        loss = lambda x: float(dense()[0](x, *data))  # noqa: E731
        gradient = jax.grad(lambda x: dense()[0](x, *data))
        g_0, g_1 = np.array(gradient(params)), {}
        u_0 = g_0 / np.linalg.norm(g_0)
        for factor in (0.5, 1, 2):
            g = np.array(gradient(params + factor * rho * u_0))
            g_1[factor] = g / np.linalg.norm(g)
        rest = g_1[1] - (g_1[1] @ u_0) * u_0
        x, psi = rest / np.linalg.norm(rest), np.arccos(g_1[1] @ u_0)
        assert found["angle"] == pytest.approx(psi, rel=1e-4)
        assert found["plane"][0, 2] == pytest.approx(loss(params + far * (x - u_0)), rel=1e-4)
        turned = 2.0 * psi  # alpha = 2, the twenty-first of 41
        at_alpha = params + far * (np.sin(turned) * x + np.cos(turned) * u_0)
        assert found["profile"][20] == pytest.approx(loss(at_alpha), rel=1e-4)
        for row_of_gap, factor in zip(found["gap"], (0.5, 1, 2), strict=True):
            expected = loss(params + far * g_1[factor]) - loss(params + far * u_0)
            assert row_of_gap[-1] == pytest.approx(expected, rel=1e-3)
            assert row_of_gap[0] == pytest.approx(0, abs=1e-5)
    assert analyze.main([str(path), *FEW, "--epoch=2"]) == 2
    assert "has no checkpoint of epoch 2: see --keep-epochs" in capsys.readouterr().err
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(MODELS, "tiny", partial(MLP, width=WIDTH))
        with pytest.raises(ValueError, match="--keep-epochs: epoch 2 of"):
            train(dataclasses.replace(config, keep_epochs=(1, 2)), show=False)


# --- Kept results ---


@pytest.mark.parametrize(
    ("options", "anew"),
    [
        ([], set()),
        (["--batch-size", "25"], set()),  # the same sum in another order
        (["--directions", "4"], {"average_sharpness"}),
        (["--points", "2"], {"loss_surface"}),
        (["--images", "50"], set(FUNCTIONS)),
        (["--seed", "1"], set(FUNCTIONS)),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, list) else "",
)
def test_other_settings_are_measured_again(runs, calls, no_figures, options, anew):
    assert analyze.main([str(runs / "sgd" / "seed0"), *FEW, "--radius", "0.2", *options]) == 0
    assert set(calls) == anew


def test_an_analysis_of_other_parameters_is_discarded(runs, calls, no_figures):
    path = runs / "sgd" / "seed0"
    shutil.rmtree(path / "checkpoints")
    shutil.copytree(runs / "sgd" / "seed1" / "checkpoints", path / "checkpoints")
    before = json.loads((path / measure_flatness.ANALYSIS).read_text())
    assert analyze.main([str(path), *FEW, "--points", "0", "--radius", "0.2"]) == 0
    assert set(calls) == set(FUNCTIONS) - {"loss_surface"}
    now = json.loads((path / measure_flatness.ANALYSIS).read_text())
    assert "landscape" in before.keys() - now.keys()
    assert now["eigenvalues"]["result"] != before["eigenvalues"]["result"]


# --- Errors ---


def test_a_run_that_cannot_be_measured_is_left_out(runs, monkeypatch, capsys, tmp_path):
    for file in runs.rglob(measure_flatness.ANALYSIS):
        file.unlink()
    function, bad = analysis.hessian_trace, []

    def hessian_trace(loss, params, **options):
        size = float(optax.tree.norm(params))
        if size in (bad or [size]):
            bad.append(size)
            raise FloatingPointError("the loss is not finite\nat all")
        return function(loss, params, **options)

    monkeypatch.setattr(analysis, "hessian_trace", hessian_trace)
    out = tmp_path / "out"
    assert analyze.main([str(runs / "sgd"), *FEW, "--out", str(out)]) == 0
    printed = capsys.readouterr()
    left_out = f"left out: {runs / 'sgd' / 'seed0'}: the loss is not finite"
    assert left_out in printed.err.splitlines()
    assert [found["seeds"] for found in read_table(out)] == ["1"]
    # The other run now has the first seed, and is drawn.
    assert {Path(line).stem for line in printed.out.splitlines() if ".png" in line} == PICTURES


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--images", "121", "--batch-size", "121"], "was trained on 120 images: lower --images"),
        (["--images", "90"], "--images 90 is no multiple of --batch-size 50"),
        (["--radius", "0"], "--radius must be above 0, not 0"),
        (["--directions", "1"], "--directions must be at least 2, not 1"),
        (["--points", "1"], "--points must be 0 or at least 2, not 1"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, list) else "",
)
def test_wrong_options_are_one_line(trained, options, message, capsys):
    try:
        status = analyze.main([str(trained / "sgd"), *FEW, *options])
    except SystemExit as exit:
        status = exit.code
    [line] = capsys.readouterr().err.splitlines()
    assert status == 2
    assert line.startswith("analyze: error: ")
    assert message in line


def test_streams_are_refused(trained, monkeypatch, capsys):
    def load_stream(config):
        stream = Stream([], np.arange(3), np.zeros(3, np.int32), 10)
        return load(config)._replace(train=stream)

    monkeypatch.setattr("examples.image_classification.data.load", load_stream)
    assert analyze.main([str(trained), *FEW]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.endswith("images that are decoded as they are read take too long")


def test_runs_without_a_last_checkpoint_are_left_out(tmp_path, capsys):
    path = fake_run(tmp_path / "a", 0, 1.0, dataset="digits", method="sgd")
    assert analyze.main([str(path)]) == 2
    assert capsys.readouterr().err.splitlines() == [
        f"left out: {path} has no checkpoint",
        "analyze: error: none of the runs could be analyzed",
    ]
    path = fake_run(tmp_path / "b", 0, 1.0, done=1, method="sgd")
    assert analyze.main([str(path)]) == 2
    assert capsys.readouterr().err == "analyze: error: none of the runs is finished\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "Expecting property name"),
        ("[]", "it is not a JSON object"),
        ('{"loss": 3}', "'loss' is no measurement"),
        ('{"loss": {"result": 3}}', "'loss' is no measurement"),
        ('{"loss": {"settings": {}, "result": 3}}', "'loss' is no measurement"),
        ('{"loss": {"settings": {"parameters": "a"}}}', "'loss' is no measurement"),
        ('{"loss": {"settings": {"parameters": "a"}, "result": "b"}}', "'loss' is no measurement"),
    ],
)
def test_kept_results_of_another_shape_raise_one_line(text, message, tmp_path, capsys):
    path = fake_run(tmp_path / "a", 0, 1.0, method="sgd")
    (path / measure_flatness.ANALYSIS).write_text(text)
    assert analyze.main([str(path)]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith(f"analyze: error: {path / measure_flatness.ANALYSIS} cannot be read: ")
    assert message in line


def test_kept_results_of_another_length_are_measured_again(runs, calls, no_figures):
    path = runs / "sgd" / "seed0"
    before = json.loads((path / measure_flatness.ANALYSIS).read_text())
    cut = before | {"eigenvalues": before["eigenvalues"] | {"result": [1.0]}}
    (path / measure_flatness.ANALYSIS).write_text(json.dumps(cut))
    assert analyze.main([str(path), *FEW, "--radius", "0.2"]) == 0
    assert calls == ["top_eigenvalues"]
    assert json.loads((path / measure_flatness.ANALYSIS).read_text()) == before
