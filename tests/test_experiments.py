"""Sweeps, comparisons and evaluations: choices, tables, files, and errors."""

import contextlib
import csv
import dataclasses
import functools
import importlib
import json
import os
import re
import shlex
import shutil
import signal
import stat
import subprocess
import types
from pathlib import Path

import chex
import jax
import numpy as np
import pandas as pd
import pytest
from matplotlib import pyplot as plt
from pictures import assert_is_a_picture

from examples.experiments import compare, equal_gradients, evaluate, figures, sweep
from examples.experiments.command_line import read_options
from examples.experiments.group_runs import Comparison
from examples.experiments.read_runs import read_evaluation, read_runs
from examples.image_classification import program as image_program
from examples.image_classification.batches import Batches, Images, schedule_rows
from examples.image_classification.command_line import read_config
from examples.image_classification.config import Config
from examples.image_classification.corruptions import CORRUPTIONS, corrupt
from examples.image_classification.data import load
from examples.image_classification.models import make_model
from examples.image_classification.presets import DEMO
from examples.training import curves
from examples.training.program import TracedSettings
from examples.training.progress import Stopped
from examples.training.run_folder import EVALUATION
from examples.training.settings import check

ROOT = Path(__file__).parents[1]
MORE = "more than two standard errors"
SCRIPTS = sorted((ROOT / "examples" / "experiments" / "runs").glob("*.sh"))
PROGRAMS = ("analyze", "compare", "equal_gradients", "evaluate", "sweep")


def fake_run(folder, seed, test, validation=None, epochs=3, seconds=2.0, done=None, **settings):
    """Writes the files of a run, with accuracies that rise to those given."""
    config = Config(**{"validation_size": 100, "epochs": epochs, "seed": seed, **settings})
    path = Path(folder) / f"seed{seed}"
    path.mkdir(parents=True)
    text = json.dumps(dataclasses.asdict(config), default=str)
    (path / "config.json").write_text(text)
    records = []
    for epoch in range(1, (epochs if done is None else done) + 1):
        record = {
            "epoch": epoch,
            "gradient_norm": 1.0 / epoch,
            "sharp_gradient_norm": 1.5 / epoch,
            # The first epoch compiles.
            "seconds": 100.0 if epoch == 1 else seconds,
            "images_per_second": 10.0,
            "step": 5 * epoch,
        }
        if validation is not None:
            record["validation_accuracy"] = validation - (epochs - epoch)
        if config.method.startswith("xsam"):
            record |= {"alpha": 2.0 if epoch == epochs else 1.5, "psi": np.pi / 6}
        records.append(record)
    if len(records) == epochs:
        records[-1]["test_accuracy"] = test
    lines = [json.dumps(record) for record in records]
    (path / "metrics.jsonl").write_text("\n".join([*lines, ""]))
    return path


SAVE, DRAW = figures.save, compare.draw


def close(figure, path):
    """Stands in for `figures.save`: most of the time of a test would go into PNG files."""
    plt.close(figure)
    return path.with_suffix(".png")


@contextlib.contextmanager
def without_figures():
    """Leaves out the figures of the trainer and of comparisons, and closes all others unwritten."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(figures, "save", close)
        patch.setattr(curves, "save_curves", lambda history, path: None)
        patch.setattr(compare, "draw", lambda comparison, out: [])
        yield


@pytest.fixture(autouse=True)
def no_figures():
    """Tests without a fixture for figures write and draw none."""
    with without_figures():
        yield


@pytest.fixture
def written_figures(no_figures, monkeypatch):
    """Draws and writes the figures of comparisons."""
    monkeypatch.setattr(figures, "save", SAVE)
    monkeypatch.setattr(compare, "draw", DRAW)


@pytest.fixture
def figures_over(written_figures, monkeypatch):
    """Draws the figures of comparisons, and writes those over a setting."""

    def save(figure, path):
        return (SAVE if "_over_rho" in path.name else close)(figure, path)

    monkeypatch.setattr(figures, "save", save)


@pytest.fixture
def runs(tmp_path):
    """SGD, XSAM, and SAM at two rho. Validation prefers one of them, the test the other."""
    for seed in (2, 10):
        fake_run(tmp_path / "sgd", seed, 70.0 + seed, 60.0, seconds=1.0, method="sgd")
        fake_run(tmp_path / "sam-good", seed, 80.0 + seed, 70.0, method="sam", rho=0.1)
        fake_run(tmp_path / "sam-lucky", seed, 99.0, 69.0, method="sam", rho=0.02)
        radii = {"rho": 0.1, "rho_max": 0.2}
        fake_run(tmp_path / "x", seed, 95 + 0.1 * seed, 71.0, seconds=2.5, method="xsam", **radii)
    return tmp_path


def compared(capsys, *arguments):
    """Returns the printed lines of the table as lists of cells, and the other lines."""
    assert compare.main(list(map(str, arguments))) == 0
    lines = capsys.readouterr().out.splitlines()
    cells = [[cell.strip() for cell in x.strip("|").split("|")] for x in lines if x[:1] == "|"]
    return cells, [line for line in lines if line[:1] != "|"]


# --- Comparing ---


def test_the_table_shows_means_and_the_test_accuracy_of_the_choice(runs, capsys):
    cells, _ = compared(capsys, runs)
    assert cells[0] == [
        *("method", "rho", "rho_max", "seeds"),
        *("validation", "test", "epoch (s)", "epoch / sam's"),
    ]
    # Of 72 and 80 the standard deviation is 8 / sqrt(2).
    assert cells[2:] == [
        ["sgd *", "", "", "2", "60.0 ±  0.0", "76.0 ±  5.7", "1", "0.5"],
        ["sam", "0.02", "", "2", "69.0 ±  0.0", "", "2", "1"],
        ["sam *", "0.1", "", "2", "70.0 ±  0.0", "86.0 ±  5.7", "2", "1"],
        ["xsam *", "0.1", "0.2", "2", "71.0 ±  0.0", "95.6 ±  0.6", "2.5", "1.25"],
    ]


def test_differences_to_sam_name_ties_and_alpha(runs, capsys):
    _, lines = compared(capsys, runs)
    # sqrt(32 / 2 + 32 / 2) and sqrt(0.32 / 2 + 32 / 2).
    assert "* sgd - sam, rho 0.1: -10.0, standard error 5.7: tie" in lines
    by = "+9.6, standard error 4.0"
    assert f"* xsam, rho 0.1, rho_max 0.2 - sam, rho 0.1: {by}: {MORE}" in lines
    found = [line for line in lines if line.startswith("* xsam") and "alpha_max" in line]
    assert found == [
        "* xsam, rho 0.1, rho_max 0.2: alpha 1.67 (1.75 in the second half), psi 30°, "
        "throughout at alpha_max in 33 % of the epochs, throughout at 0 in 0 % of the epochs"
    ]
    hours = 2 * (102 + 2 * 104 + 105) / 3600
    assert any(line.startswith(f"8 runs, {hours:.2g} hours of training.") for line in lines)


def test_csv_and_pictures_are_written(runs, tmp_path, capsys, written_figures):
    out = tmp_path / "out"
    cells, _ = compared(capsys, runs, "--out", out)
    with (out / "table.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["method"] for row in rows] == [line[0] for line in cells[2:]]
    assert float(rows[0]["test mean"]) == 76.0
    assert float(rows[0]["test std"]) == pytest.approx(8 / 2**0.5)
    assert rows[1]["test mean"] == ""
    pictures = {path.stem for path in out.glob("*.png")}
    assert pictures == {"accuracy_over_epochs", "gradient_norms", "alpha_and_psi", "time_per_epoch"}
    for name in pictures:
        assert_is_a_picture(out / f"{name}.png")


def test_over_a_setting_no_value_is_chosen(runs, capsys, figures_over):
    cells, lines = compared(capsys, runs, "--over", "rho")
    assert [line[5] for line in cells[2:]] == [
        "76.0 ±  5.7",
        "99.0 ±  0.0",
        "86.0 ±  5.7",
        "95.6 ±  0.6",
    ]
    assert any(
        line.startswith("* xsam, rho 0.1, rho_max 0.2 - sam, rho 0.1: +9.6") for line in lines
    )
    assert_is_a_picture(runs / "comparison" / "accuracy_over_rho.png")


def test_over_a_setting_that_sam_lacks_all_have_the_same_base(tmp_path, drawn, capsys):
    scales = {"first": 80.0, "last": 90.0}
    for seed in (0, 1):
        fake_run(tmp_path / "sam", seed, 85.0, method="sam", rho=0.1)
        for scale, test in scales.items():
            method = {"method": "xsam", "rho": 0.1, "rho_max": 0.2, "method_args": {"scale": scale}}
            fake_run(tmp_path / scale, seed, test, **method)
    cells, lines = compared(capsys, tmp_path, "--over", "scale")
    assert cells[0][:4] == ["method", "rho_max", "scale", "seeds"]
    assert sum(" - sam" in line for line in lines) == 2
    assert f"* xsam, rho_max 0.2, scale first - sam: -5.0, standard error 0.0: {MORE}" in lines
    assert "accuracy_over_scale" in drawn


def test_each_data_set_has_its_own_choice_and_base(tmp_path, capsys):
    for rate in (0.0, 0.4):
        for seed in (0, 1):
            common = {"label_noise": rate, "rho": 0.1}
            test = 90.0 - 50 * rate
            fake_run(tmp_path / f"sam{rate}", seed, test, 50.0, method="sam", **common)
            fake_run(tmp_path / f"asam{rate}", seed, test + 1, 50.0, method="asam", **common)
    cells, lines = compared(capsys, tmp_path)
    assert len(cells) == 2 + 4
    assert all(line[4] for line in cells[2:])  # all have a test accuracy
    for label in ("label_noise 0", "label_noise 0.4"):
        by = f"+1.0, standard error 0.0: {MORE}"
        assert f"* asam, {label} - sam, {label}: {by}" in lines


def test_tuning_and_unfinished_runs_are_left_out(runs, capsys):
    fake_run(runs / "tuning" / "sam", 0, 10.0, 99.0, method="sam", rho=0.5)
    fake_run(runs / "gsam", 0, 10.0, 99.0, done=2, method="gsam", rho=0.5)
    assert compare.main([str(runs)]) == 0
    captured = capsys.readouterr()
    assert "| sam | 0.5 |" not in captured.out
    assert "| gsam" not in captured.out
    assert "gsam/seed0 is at epoch 2 of 3" in captured.out
    tuning = read_runs([runs / "tuning"])
    assert list(tuning.table["settings", "rho"]) == [0.5]


def test_seeds_are_sorted_as_numbers(runs):
    comparison = Comparison(read_runs([runs]))
    for folders in comparison.members:
        assert [path.name for path in folders] == ["seed2", "seed10"]
    assert list(comparison.groups["method"]) == ["sgd", "sam", "sam", "xsam"]


def test_another_method_can_be_the_base(runs, capsys):
    cells, lines = compared(capsys, runs, "--against", "sgd")
    assert cells[0][-1] == "epoch / sgd's"
    assert cells[-1][-1] == "2.5"
    assert "* sam, rho 0.1 - sgd: +10.0, standard error 5.7: tie" in lines
    assert compare.main([str(runs), "--against", "asam"]) == 2
    assert "there is no run of 'asam'" in capsys.readouterr().err


def test_two_runs_of_sam_with_equal_settings_are_no_base(tmp_path, capsys):
    for rho in (0.1, 0.2):
        fake_run(tmp_path / str(rho), 0, 80.0, method="sam", rho=rho)  # nothing to choose by
    fake_run(tmp_path / "sgd", 0, 80.0, method="sgd")
    cells, lines = compared(capsys, tmp_path)
    assert "* sgd: not compared, as no or several rows of sam fit" in lines
    assert cells[0][-1] == "epoch / sam's"
    assert [line[-1] for line in cells[2:]] == ["", "", ""]


def test_defaults_are_shown_as_values(tmp_path, drawn, capsys):
    """Steps between probes, of which None is the five of an epoch, and an argument's default."""
    radii = {"method": "xsam", "rho": 0.1, "rho_max": 0.2}
    for every, test in ((None, 80.0), (10, 90.0)):
        fake_run(tmp_path / "every" / str(every), 0, test, probe_every=every, **radii)
    cells, _ = compared(capsys, tmp_path / "every", "--over", "probe-every")
    assert [line[1] for line in cells] == ["probe_every", "---", "5", "10"]
    assert [line[3] for line in cells[2:]] == ["80.0", "90.0"]
    for name, arguments in (("default", {}), ("first", {"scale": "first"})):
        fake_run(tmp_path / "scale" / name, 0, 1.0, method_args=arguments, **radii)
    cells, _ = compared(capsys, tmp_path / "scale", "--over", "scale")
    assert sorted(line[1] for line in cells[2:]) == ["first", "last"]


def test_arguments_of_a_method_are_sorted_as_numbers(tmp_path, drawn, capsys):
    for sigma in ("10", "2", "0.95"):
        arguments = {"method_args": {"sigma": sigma}, "method": "friendly_sam", "rho": 0.1}
        fake_run(tmp_path / sigma, 0, 1.0, **arguments)
    cells, _ = compared(capsys, tmp_path, "--over", "sigma")
    assert [line[1] for line in cells[2:]] == ["0.95", "2", "10"]


def test_groups_with_fewer_seeds_are_no_candidates(tmp_path, drawn, capsys):
    for seed in (0, 1):
        fake_run(tmp_path / "whole", seed, 80.0, 60.0, method="sam", rho=0.1)
    fake_run(tmp_path / "half", 0, 90.0, 61.0, method="sam", rho=0.4)
    fake_run(tmp_path / "half", 1, 90.0, 61.0, done=1, method="sam", rho=0.4)
    cells, _ = compared(capsys, tmp_path)
    assert [line[:2] for line in cells[2:]] == [["sam *", "0.1"], ["sam", "0.4"]]
    written = (tmp_path / "comparison" / "table.md").read_text()
    assert "half/seed1 is at epoch 1 of 3" in written
    # Its picture over rho has as many seeds at each place as there are.
    compared(capsys, tmp_path, "--over", "rho")


def test_choices_at_the_edge_are_listed(tmp_path, capsys):
    accuracies = {0.0: (1.0, 2.0, 3.0), 0.4: (1.0, 3.0, 2.0)}
    for noise, validation in accuracies.items():
        for rho, of_rho in zip((0.1, 0.2, 0.4), validation, strict=True):
            folder = tmp_path / f"{noise}-{rho}"
            common = {"method": "sam", "rho": rho, "label_noise": noise}
            fake_run(folder, 0, 80.0, of_rho, **common)
    _, lines = compared(capsys, tmp_path)
    listed = [line for line in lines if "at the edge" in line]
    assert listed == ["* sam, label_noise 0, rho 0.4: rho is at the edge of what was tried"]
    _, lines = compared(capsys, tmp_path, "--over", "rho")
    assert not any("at the edge" in line for line in lines)


def test_shared_settings_are_listed_for_all_and_for_some_methods(runs, capsys):
    _, lines = compared(capsys, runs)
    shared = next(line for line in lines if "hours of training" in line)
    assert re.search(r"All: .*epochs 3\b", shared)
    assert re.search(
        r"xsam: probe_every 5, alpha_max 2, num_alphas 21, search grid, scale last", shared
    )
    assert "learning_rate 0.05" in shared.split("xsam: ")[0]


def test_overlapping_folders_are_read_once(runs):
    assert len(read_runs([runs, runs / "sgd", runs]).table) == 8


@pytest.fixture
def drawn(no_figures, monkeypatch):
    """Records the lines of each figure by its name and panel: label, x and y."""
    pictures = {}

    def save(figure, path):
        pictures[path.name] = [
            {line.get_label(): np.array(line.get_data(), float) for line in axes.lines}
            for axes in figure.axes
        ]
        pictures[path.name, "bands"] = [
            [c.get_paths()[0].get_extents() for c in axes.collections] for axes in figure.axes
        ]
        pictures[path.name, "bars"] = [
            [bar.get_width() for bar in axes.patches] for axes in figure.axes
        ]
        return close(figure, path)

    monkeypatch.setattr(figures, "save", save)
    monkeypatch.setattr(compare, "draw", DRAW)
    return pictures


def test_figures_show_the_numbers_of_the_choice(runs, drawn, capsys):
    compared(capsys, runs)
    (accuracy,) = drawn["accuracy_over_epochs"]
    sam, xsam = r"SAM, $\rho$ 0.1", r"XSAM, $\rho$ 0.1, $\rho_m$ 0.2"
    assert set(accuracy) == {"SGD", sam, xsam}
    np.testing.assert_allclose(accuracy[sam], [[1, 2, 3], [68, 69, 70]])
    first, used = drawn["gradient_norms"]
    np.testing.assert_allclose(first["SGD"], [[1, 2, 3], [1, 1 / 2, 1 / 3]])
    np.testing.assert_allclose(used["SGD"], [[1, 2, 3], [1.5, 1.5 / 2, 1.5 / 3]])
    alpha, psi, turned = (panel[xsam] for panel in drawn["alpha_and_psi"])
    np.testing.assert_allclose(alpha[1], [1.5, 1.5, 2.0])
    np.testing.assert_allclose(psi[1], [30, 30, 30])
    np.testing.assert_allclose(turned[1], [45, 45, 60])
    np.testing.assert_allclose(drawn["time_per_epoch", "bars"], [[0.5, 1.0, 1.25]])


def test_figures_over_a_setting_have_means_bands_and_levels(runs, drawn, capsys):
    compared(capsys, runs, "--over", "rho")
    (lines,) = drawn["accuracy_over_rho"]
    np.testing.assert_allclose(lines["SAM"], [[0.02, 0.1], [99, 86]])
    np.testing.assert_allclose(lines["SGD"][1], 76)
    np.testing.assert_allclose(lines["XSAM"], [[0.1], [95.6]])
    low_high = [(box.ymin, box.ymax) for box in drawn["accuracy_over_rho", "bands"][0]]
    assert (82.0, 99.0) in low_high  # from 82, the lower seed at 0.1, to 99 at 0.02


def test_bands_of_five_seeds_are_confidence_intervals(tmp_path, drawn, capsys):
    for seed in range(5):
        for rho in (0.1, 0.2):
            fake_run(tmp_path / str(rho), seed, 80.0 + seed, method="sam", rho=rho)
        fake_run(tmp_path / "more", seed, 81.0 + seed + seed % 2, method="sam", rho=0.4)
    _, lines = compared(capsys, tmp_path, "--over", "rho")
    found = [line for line in lines if " - sam, rho 0.1: " in line]
    assert found == [
        "* sam, rho 0.2 - sam, rho 0.1: +0.00 [+0.00, +0.00], 5 seeds: tie",
        "* sam, rho 0.4 - sam, rho 0.1: +1.40 [+0.72, +2.08], 5 seeds: they differ",
    ]
    low = 82 - 2.776 * np.sqrt(2.5 / 5)  # Student's t of four degrees of freedom
    high = 83.4 + 2.776 * np.sqrt(2.8 / 5)
    low_high = [(box.ymin, box.ymax) for box in drawn["accuracy_over_rho", "bands"][0]]
    np.testing.assert_allclose(low_high, [(low, high)], rtol=1e-4)


def test_candidates_without_a_choice_have_a_line_each(tmp_path, drawn, capsys):
    for rho in (0.4, 0.1):
        for ratio in (1, 2):
            radii = {"method": "xsam", "rho": rho, "rho_max": ratio}
            fake_run(tmp_path / f"{rho}-{ratio}", 0, 80 + rho + ratio, **radii)
    compared(capsys, tmp_path, "--over", "rho")
    (lines,) = drawn["accuracy_over_rho"]
    assert set(lines) == {r"XSAM, $\rho_m$ 1", r"XSAM, $\rho_m$ 2"}
    np.testing.assert_allclose(lines[r"XSAM, $\rho_m$ 2"], [[0.1, 0.4], [82.1, 82.4]])


def test_curves_cover_the_epochs_that_all_seeds_have(tmp_path, drawn, capsys):
    fake_run(tmp_path, 0, 80.0, 60.0, method="sgd")
    path = fake_run(tmp_path, 1, 80.0, 60.0, method="sgd")
    records = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    del records[0]["validation_accuracy"]
    (path / "metrics.jsonl").write_text("\n".join([*map(json.dumps, records), ""]))
    compared(capsys, tmp_path)
    np.testing.assert_allclose(drawn["accuracy_over_epochs"][0]["SGD"], [[2, 3], [59, 60]])


def test_any_setting_can_be_the_axis(tmp_path, drawn, capsys):
    for augmentation in (("crop", "flip"), ("flip",)):
        fake_run(tmp_path / augmentation[0], 0, 80.0, method="sgd", augmentation=augmentation)
    compared(capsys, tmp_path, "--over", "augmentation")
    assert "accuracy_over_augmentation" in drawn


def overwrite(name, text):
    """Returns a function that makes a run, one file of which has another text."""

    def prepare(folder):
        path = fake_run(folder / "a", 0, 1.0, method="sgd")
        (path / name).write_text(text, encoding="latin-1")

    return prepare


EPOCH = '{"epoch": 3, "step": 15, "seconds": 1.0}'
CONFIG = '{"dataset": "digits", "model": "mlp", "method": "sgd", "seed": 0, "epochs": 3}'
BAD_FILES = {
    "config is no JSON": ("config.json", "{", "Expecting property name"),
    "config is a list": ("config.json", "[1]", "not a JSON object with dataset, model"),
    "config lacks a key": ("config.json", CONFIG.replace("seed", "sed"), "method, seed, epochs"),
    "config has text as epochs": ("config.json", CONFIG.replace("3", '"three"'), "'three'"),
    "config has a list as method": ("config.json", CONFIG.replace('"sgd"', "[]"), "got []"),
    "config has an unknown method": ("config.json", CONFIG.replace("sgd", "sgg"), "'sgg'"),
    "config lacks a radius": ("config.json", CONFIG.replace("sgd", "sam"), "sam needs --rho"),
    "config has text as radius": (
        "config.json",
        CONFIG.replace('"sgd"', '"sam", "rho": "x"'),
        "rho must be float | None, got 'x'",
    ),
    "config has a list of arguments": (
        "config.json",
        CONFIG.replace('"sgd"', '"wsam", "method_args": [1], "rho": 1'),
        "method_args must be dict[str, str], got [1]",
    ),
    "metrics are no JSON": ("metrics.jsonl", "{]}\n", "Expecting property name"),
    "metrics are lists": ("metrics.jsonl", f"{EPOCH}\n[{EPOCH}, {{}}]{{}}\n", "Extra data"),
    "metrics lack a key": ("metrics.jsonl", EPOCH.replace("step", "steps"), "epoch, step, seconds"),
    "metrics have nan": (
        "metrics.jsonl",
        EPOCH.replace("1.0", "NaN") + "\n",
        "seconds is not a num",
    ),
    "metrics have text": ("metrics.jsonl", EPOCH.replace("15", '"15"'), "step is no number"),
    "evaluation is a list": (EVALUATION, "[1, 2]", "not a JSON object with test_accuracy"),
    "evaluation is no text": (EVALUATION, "\xff", "invalid start byte"),
    "evaluation is a number": (EVALUATION, "3", "not a JSON object with test_accuracy"),
    "evaluation lacks a key": (EVALUATION, '{"corrupted": 3.0}', "test_loss, test_ece, images"),
    "evaluation has a long number": (
        EVALUATION,
        '{"test_accuracy": 1' + 400 * "0" + ', "test_loss": 1, "test_ece": 1, "images": 1}',
        "test_accuracy is no number but 1000",
    ),
    "evaluation has a bool": (
        EVALUATION,
        '{"test_accuracy": true, "test_loss": 1, "test_ece": 1, "images": 1}',
        "test_accuracy is no number but True",
    ),
    "evaluation has text": (
        EVALUATION,
        '{"test_accuracy": "3", "test_loss": 1, "test_ece": 1, "images": 1}',
        "test_accuracy is no number but '3'",
    ),
}


@pytest.mark.parametrize("case", BAD_FILES)
@pytest.mark.parametrize("name", ["analyze", "compare", "evaluate"])
def test_files_of_another_shape_raise_one_line_with_their_name(case, name, tmp_path, capsys):
    file, text, message = BAD_FILES[case]
    overwrite(file, text)(tmp_path)
    program = importlib.import_module(f"examples.experiments.{name}")
    assert program.main([str(tmp_path)]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith(f"{name}: error: {tmp_path / 'a' / 'seed0' / file} cannot be read: ")
    assert message in line


def test_a_line_of_metrics_that_was_cut_off_is_skipped(tmp_path):
    path = fake_run(tmp_path, 0, 80.0, method="sgd")
    with (path / "metrics.jsonl").open("a") as file:
        file.write('{"epoch": 4, "ste')
    assert list(read_runs([tmp_path]).epochs.loc[path].index) == [1, 2, 3]


def test_a_run_without_its_configuration_is_named(tmp_path, capsys):
    for seed in (0, 1):
        path = fake_run(tmp_path, seed, 80.0, method="sgd")
    (path / "config.json").unlink()
    assert compare.main([str(tmp_path)]) == 0
    assert f"left out: {path} has no config.json" in capsys.readouterr().out


def test_metrics_of_older_runs_are_read(tmp_path, capsys):
    """They count gradients, which newer runs do not, and no column shows them."""
    path = fake_run(tmp_path, 0, 80.0, method="sgd")
    records = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    lines = [json.dumps(record | {"gradients": 1.0}) for record in records]
    (path / "metrics.jsonl").write_text("\n".join([*lines, ""]))
    cells, _ = compared(capsys, tmp_path)
    assert cells[0] == ["method", "seeds", "test", "epoch (s)"]


BAD = {
    "no folder": (lambda f: None, ["nowhere"], "is no folder"),
    "no argument": (lambda f: None, [], "give the folder of a run"),
    "no run": (lambda f: (f / "a").mkdir(), ["a"], "holds no run: there is no config.json"),
    "unfinished": (
        lambda f: fake_run(f / "a", 0, 1.0, done=1, method="sgd"),
        ["a"],
        "none of the runs",
    ),
    "twice": (
        lambda f: [fake_run(f / name, 0, 1.0, method="sgd") for name in "ab"],
        ["a", "b"],
        "a/seed0 and b/seed0 are the same run: give one of them",
    ),
    "over": (
        lambda f: [fake_run(f / "a", s, 1.0, rho=0.1 * (s + 1), rho_max=0.3) for s in (0, 1)],
        ["a", "--over", "rhoo"],
        "the runs do not differ in 'rhoo'; did you mean 'rho'?",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_compare_names_mistakes_in_one_line(case, tmp_path, monkeypatch, capsys):
    prepare, arguments, message = BAD[case]
    prepare(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert compare.main(arguments) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("compare: error: ")
    assert message in line


# --- Command lines ---


@pytest.mark.parametrize("name", PROGRAMS)
def test_the_help_explains_every_option(name, capsys):
    program = importlib.import_module(f"examples.experiments.{name}")
    with pytest.raises(SystemExit) as end:
        program.main(["--help"])
    assert end.value.code == 0
    text = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert " ".join(program.__doc__.split("\n\n")[0].split()) in text
    for field in dataclasses.fields(program.Options):
        if field.name not in ("folder", "folders", "settings"):
            assert f"--{field.name.replace('_', '-')}" in text
    assert text.count("(default: ") + text.count("(required)") == len(
        dataclasses.fields(program.Options)
    )


@pytest.mark.parametrize("name", PROGRAMS)
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--nonsense", "1"], "Unrecognized options: --nonsense"),
        (["a", "--out"], "Missing value for argument '--out'"),
    ],
    ids=["unknown", "without a value"],
)
def test_wrong_options_are_one_line_and_status_2(name, arguments, message, capsys):
    program = importlib.import_module(f"examples.experiments.{name}")
    if name == "evaluate":  # it has no --out
        arguments = [text.replace("out", "images") for text in arguments]
        message = message.replace("out", "images")
    elif name == "sweep" and "a" not in arguments:  # it needs --out
        arguments = ["--out", "a", *arguments]
    elif name == "equal_gradients":  # it needs a folder
        arguments = ["a", *(x for x in arguments if x != "a")]
    with pytest.raises(SystemExit) as end:
        program.main(arguments)
    assert end.value.code == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith(f"{name}: error: ")
    assert message in line


# --- Equal numbers of gradients ---


def test_methods_are_compared_at_equal_numbers_of_gradients(tmp_path, capsys, written_figures):
    for number, gain in ((12, 2.0), (60, -1.0)):
        for seed in range(5):
            level, wobble = 70.0 + number / 10, 0.1 * (-1) ** seed
            runs = {
                "sam": (2, level + seed, {"rho": 0.1}),
                "worse": (2, 99.0, {"method": "sam", "rho": 0.2}),
                "sgd": (1, level - 5 + seed, {}),
                "fifth": (1.2, level + seed + gain + wobble, {"rho": 0.1, "sharp_every": 5}),
            }
            for name, (each, test, settings) in runs.items():
                validation = 50.0 if name == "worse" else 60.0
                method = {"method": "sgd" if name == "sgd" else "sam"} | settings
                options = {"epochs": round(number / each), "seconds": each} | method
                fake_run(tmp_path / str(number) / name, seed, test, validation, **options)
    assert equal_gradients.main([str(tmp_path)]) == 0
    text = capsys.readouterr().out
    assert "| sam | 73.2 ±  1.6 | 12 | 78.0 ±  1.6 | 60 |" in text
    assert "| sam, every 5 steps | 75.2 ±  1.6 | 12 |" in text
    assert "* 12 gradients, sgd - sam: -5.00 [-5.00, -5.00], 5 seeds: they differ" in text
    assert "* 60 gradients, sam, every 5 steps - sam: -0.98 [-1.12, -0.84]" in text
    assert re.findall(r"^\| (s[^|]*) \|", text, re.MULTILINE) == [
        "sgd",
        "sam",
        "sam, every 5 steps",
    ]
    shutil.rmtree(tmp_path / "60" / "sgd" / "seed4")
    assert equal_gradients.main([str(tmp_path)]) == 0
    assert (
        "60 gradients, sgd - sam: not compared, as they have other seeds" in capsys.readouterr().out
    )
    for over in ("gradients", "seconds"):
        assert_is_a_picture(tmp_path / "comparison" / f"accuracy_over_{over}.png")


def test_equal_gradients_names_mistakes_in_one_line(tmp_path, capsys):
    (tmp_path / "tuning").mkdir()
    assert equal_gradients.main([str(tmp_path)]) == 2
    assert "has no folder that is named by a number of gradients" in capsys.readouterr().err
    for rate in (0.1, 0.2):
        fake_run(tmp_path / "60" / str(rate), 0, 70.0, method="sgd", learning_rate=rate)
    assert equal_gradients.main([str(tmp_path)]) == 2
    assert "has several settings of sgd" in capsys.readouterr().err


# --- Calibration ---


def reference_calibration_error(logits, labels, bins):
    """Guo et al., equations 2 to 5, one image after the other."""
    members = [[] for _ in range(bins)]
    for row, label in zip(logits, labels, strict=True):
        probabilities = np.exp(np.float64(row)) / np.sum(np.exp(np.float64(row)))
        best = int(np.argmax(probabilities))
        for m in range(bins):
            if m / bins < probabilities[best] <= (m + 1) / bins:
                members[m].append((best == label, probabilities[best]))
    total = 0.0
    for of_bin in members:
        if of_bin:
            right = sum(hit for hit, _ in of_bin) / len(of_bin)
            confident = sum(p for _, p in of_bin) / len(of_bin)
            total += len(of_bin) / len(labels) * abs(right - confident)
    return 100 * total


@pytest.mark.parametrize("bins", [1, 4, 15])
def test_the_calibration_error_matches_the_paper(bins):
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(0, 2, (500, 5)).astype(np.float32), rng.integers(0, 5, 500)
    expected = reference_calibration_error(logits, labels, bins)
    assert expected > 5
    assert evaluate.calibration_error(logits, labels, bins) == pytest.approx(expected, rel=1e-9)


def test_the_calibration_error_of_certain_and_uniform_predictions():
    sure = np.array([[1e4, 0.0], [1e4, 0.0]], np.float32)
    assert evaluate.calibration_error(sure, np.array([0, 0])) == 0
    assert evaluate.calibration_error(sure, np.array([0, 1])) == 50
    even = np.zeros((2, 2), np.float32)
    assert evaluate.calibration_error(even, np.array([0, 1])) == pytest.approx(0)


# --- Sweeps and evaluations of real runs ---

# Runs that differ in rho, seed and label noise share a compiled program.
EACH = """--dataset digits --method sam --train-size 320 --validation-size 100
          --epochs 2 --evaluate-every 2"""


with_swept = pytest.mark.xdist_group("swept")


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    """Chooses a rho, among others with which nothing is learned, then trains two seeds."""
    out = tmp_path_factory.mktemp("sweep")
    arguments = ["--out", str(out), "--tune", "7", "--seeds", "0", "1", "--each", EACH]
    arguments += [f"--rho {rho}" for rho in ("1e9", "0.05", "1e30")]
    with without_figures():
        assert sweep.main(arguments) == 0
    return out, arguments


@with_swept
def test_a_sweep_repeats_the_choice_by_validation(swept):
    out, _ = swept
    tuned = {path.parent.name for path in (out / "tuning").glob("*/seed7")}
    assert tuned == {f"rho{rho}" for rho in ("1e9", "0.05", "1e30")}
    chosen = {str(path.relative_to(out)) for path in out.glob("rho*/seed*")}
    assert chosen == {f"rho0.05/seed{seed}" for seed in (0, 1)}
    assert len(read_runs([out]).table) == 2


@with_swept
def test_a_finished_sweep_trains_nothing(swept, capsys):
    out, arguments = swept
    files = sorted(out.glob("*/seed*/checkpoints/*")) + sorted(
        out.glob("tuning/*/seed*/checkpoints/*")
    )
    before = [path.stat().st_mtime_ns for path in files]
    assert len(before) >= 4
    assert sweep.main(arguments) == 0
    assert [path.stat().st_mtime_ns for path in files] == before
    expected = "rho0.05 is best of 3: a better rho may lie beyond\n"  # the smallest of them
    assert expected in capsys.readouterr().err


def test_a_choice_within_what_was_tried_is_not_at_its_edge():
    tried = {"rho": [0.1, 0.2, 0.3, 0.3], "learning_rate": [1.0, 2.0, 1.0, 2.0]}
    rivals = pd.DataFrame(tried, dtype=object)
    assert [sweep.at_edge(rivals, i) for i in range(4)] == [["rho"], [], ["rho"], ["rho"]]


def test_a_stopped_sweep_continues(tmp_path, monkeypatch, capsys):
    arguments = ["--out", str(tmp_path), "--seeds", "0", "1", "--each", EACH, "--rho 0.1"]
    trained = []

    def stop_at_the_second(config, show):
        trained.append(config.seed)
        if len(trained) == 2:
            raise Stopped("stopped after step 7", signal.SIGTERM)
        return train(config, show)

    train = sweep.train
    monkeypatch.setattr(Config, "trains_together", lambda config: False)  # one seed after the other
    monkeypatch.setattr(sweep, "train", stop_at_the_second)
    assert sweep.main(arguments) == 128 + signal.SIGTERM
    assert "sweep: stopped after step 7" in capsys.readouterr().err
    assert sweep.main(arguments) == 0
    assert trained == [0, 1, 0, 1]
    assert len(read_runs([tmp_path]).table) == 2


def test_a_sweep_names_the_choices_in_which_all_diverge(tmp_path, capsys):
    arguments = ["--out", str(tmp_path), "--tune", "0", "--seeds", "1", "--each", EACH]
    settings = [f"--rho {rho}" for rho in ("1e30", "1e31")]
    assert sweep.main([*arguments, *settings]) == 1
    line = capsys.readouterr().err.splitlines()[-1]
    assert line == "sweep: error: diverged: all of rho1e30, rho1e31"
    assert not list(tmp_path.glob("rho*"))


@pytest.fixture
def trained(monkeypatch):
    """Replaces training, and records the folders of the runs that would be trained."""
    folders = []

    def train(config, show):
        folders.append("/".join(config.out.parts[-3:]))
        return [{"validation_accuracy": 100 * config.rho}]

    monkeypatch.setattr(sweep, "train", train)
    return folders


def test_settings_that_are_not_tuned_do_not_compete(tmp_path, trained):
    arguments = ["--out", str(tmp_path / "out"), "--tune", "0", "--seeds", "1", "--each", EACH]
    arguments += [f"--rho {rho} --label-noise {rate}" for rate in (0, 0.4) for rho in (0.1, 0.2)]
    assert sweep.main(arguments) == 0
    chosen = {name for name in trained if name.startswith("out")}
    assert chosen == {f"out/rho0.2-label_noise{rate}/seed1" for rate in (0, 0.4)}
    assert len(set(trained) - chosen) == 4


def test_a_sweep_without_tuning_trains_all(tmp_path, trained):
    arguments = ["--out", str(tmp_path / "out"), "--seeds", "3", "--each", EACH]
    assert sweep.main([*arguments, "--rho 0.1", "--rho 0.2"]) == 0
    assert trained == ["out/rho0.1/seed3", "out/rho0.2/seed3"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--method smm"], "unknown method 'smm'; did you mean 'sam'?"),
        (["--method sgd", "--tune", "0"], "--tune needs validation images"),
        (["--method sgd --rho 0.1"], "sgd does not use --rho: leave it out"),
        (["--method sam --rho 0.1 --seed 3"], "--seed is not for a setting: there are --seeds"),
        (["--method vasso --rho 0.1 --method-args thetaa 1"], "vasso has no argument 'thetaa'"),
        (["--method sam --rho -1"], "rho must be above 0, got -1.0"),
        (["--method sgd", "--method  sgd"], "'sgd' is there twice"),
        (["--method sgd --seed=3"], "--seed is not for a setting: there are --seeds"),
        (["--method sgd --out=x"], "--out is not for a setting"),
        (["--method 'sgd"], 'in "--method \'sgd": No closing quotation'),
        (
            ["--method sam --rho 0.1", "--method sam --rho 0.10"],
            "the settings 'sam-rho0.1' and 'sam-rho0.10' are the same",
        ),
        (
            ["--method gsam --method-args alpha 1", "--method gsam --method-args alpha 1.0"],
            "the settings 'gsam-alpha-1' and 'gsam-alpha-1.0' are the same",
        ),
        (["--method sgd", "--seeds", "1", "1"], "seeds must differ, got 1 1"),
        (
            ["--method sgd --validation-size 100", "--seeds", "0:3", "--tune", "2"],
            "seed 2 is in --seeds and in --tune",
        ),
        (["--seeds", "1", "--method sgd"], "the setting '--method sgd' follows the seeds directly"),
        ([], "give a setting: options of the trainer"),
    ],
)
def test_mistakes_in_a_sweep_are_found_before_training(arguments, message, tmp_path, capsys):
    each = "--each=--dataset digits --validation-size 0"
    assert sweep.main(["--out", str(tmp_path / "out"), each, *arguments]) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.rglob("metrics.jsonl"))


@pytest.mark.parametrize(
    ("setting", "name"),
    [
        ("--method sam --rho 0.05", "sam-rho0.05"),
        ("--method xsam --method-args scale first --rho-max 0.1", "xsam-scale-first-rho_max0.1"),
        ("--preset cifar10-resnet18-sam --bf16", "cifar10-resnet18-sam-bf16"),
        ("--augmentation crop flip", "augmentationcrop-flip"),
        ("", "default"),
        ("--data-dir ../../etc", "data_dir.._.._etc"),
        ("--data-dir '/a b'", "data_dir_a_b"),
    ],
)
def test_folders_are_named_by_the_options_of_a_setting(setting, name):
    assert sweep.make_point(setting, "--epochs 1").name == name


def test_folders_of_a_sweep_stay_within_out(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for setting in ("--data-dir ../../etc", "--data-dir ..", "--model ../x"):
        name = sweep.make_point(setting, "").name
        assert (tmp_path / name).resolve().parent == tmp_path
    for program, words in ((sweep, ["--method sgd"]), (compare, ["runs"])):
        for out in (["--out", ""], ["--out="]):
            with pytest.raises(SystemExit) as end:
                program.main([*out, *words])
            assert end.value.code == 2
            assert capsys.readouterr().err.endswith(": error: --out names no folder\n")
    assert not list(tmp_path.iterdir())
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert sweep.read_arguments(["--out=~/x", "--method sgd"]).out == tmp_path / "home" / "x"


FEW = {"noise": {"gaussian_noise": None}, "weather": {"fog": None, "brightness": None}}


@with_swept
def test_an_evaluation_agrees_with_the_trainer(swept, monkeypatch, capsys):
    out, _ = swept
    monkeypatch.setattr(evaluate, "CORRUPTIONS", FEW)
    assert evaluate.main([str(out), "--corruptions"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 2
    last = read_runs([out]).table["last"]
    test = load(Config(dataset="digits", train_size=320, validation_size=100)).test
    assert isinstance(test, Images)
    for path in last.index:
        found, metrics = read_evaluation(path), json.loads(last_line(path / "metrics.jsonl"))
        assert found["images"] == found["corrupted_images"] == 500
        assert found["test_accuracy"] == pytest.approx(metrics["test_accuracy"], rel=1e-6)
        assert found["test_loss"] == pytest.approx(metrics["test_loss"], rel=1e-5)
        network = evaluate.restore(path)
        for name in ("fog", "gaussian_noise"):
            accuracies = []
            for severity in (1, 2, 3, 4, 5):
                pixels = corrupt(test.pixels, name, severity, evaluate.SEED)
                logits, labels = network.logits(Images(pixels, test.labels))
                accuracies.append(100 * np.mean(np.argmax(logits, axis=1) == labels))
            assert found[name] == pytest.approx(np.mean(accuracies))
        assert found["weather"] == pytest.approx((found["fog"] + found["brightness"]) / 2)


@with_swept
def test_an_evaluation_averages_over_corruptions_of_the_first_images(swept, capsys):
    out, _ = swept
    assert evaluate.main([str(out), "--corruptions", "--images", "40"]) == 0
    for path in read_runs([out]).table.index:
        found = read_evaluation(path)
        assert (found["images"], found["corrupted_images"]) == (500, 40)
        assert found["fog"] in 0.5 * np.arange(201)  # of 40 images at five severities
        names = [name for of_group in CORRUPTIONS.values() for name in of_group]
        assert found["corrupted"] == pytest.approx(np.mean([found[name] for name in names]))
        for title, of_group in CORRUPTIONS.items():
            assert found[title] == pytest.approx(np.mean([found[name] for name in of_group]))
    capsys.readouterr()
    cells, lines = compared(capsys, out)
    titles = ["test", "ECE", "noise", "blur", "weather", "digital", "all corruptions"]
    assert [title for title in cells[0] if title in titles] == titles
    assert "* corruptions of the first 40 test images" in lines


def test_renewed_statistics_are_those_at_the_parameters(monkeypatch):
    monkeypatch.setattr(image_program, "make_model", functools.partial(make_model, width=4))
    config = Config(model="resnet8_half", method="sgd", train_size=320, validation_size=100)
    batches = Batches(load(config), config)
    program = image_program.ImageProgram(config, batches.spec)
    state = program.init(TracedSettings.of(config))._replace(opt_state=None)
    before = jax.tree.map(np.asarray, state.params)
    renewed = evaluate.Trained(batches, program, state).renew_statistics().state
    chex.assert_trees_all_equal(renewed.params, before)
    # The first convolution, of stride 2 over images padded by a pixel, in NumPy.
    images = batches.split("train")
    pixels = (images.pixels / 255.0 - np.array(batches.spec.mean)) / np.array(batches.spec.std)
    padded = np.pad(pixels, [(0, 0), (1, 1), (1, 1), (0, 0)])
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), (1, 2))[:, ::2, ::2]
    kernel = before["stem"]["layers"][0]["kernel"]
    means = np.einsum("nhwcij,ijck->nk", windows, kernel) / np.prod(windows.shape[1:3])
    expected = np.zeros(means.shape[1])
    for epoch in range(10):  # 50 steps
        for rows in schedule_rows(320, config.batch_size, config.seed, epoch):
            expected = 0.9 * expected + 0.1 * means[rows].mean(axis=0)
    found = renewed.statistics["stem"]["layers"][1]["mean"]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)


def test_published_corruptions_come_first_and_frost_with_them(monkeypatch):
    """A network that finds images bright or dark, and images that are published all bright."""

    def logits(images):
        bright = images.pixels.mean(axis=(1, 2, 3)) > 127
        return np.stack([~bright, bright], axis=1) * 1.0, images.labels

    images = Images(np.zeros((4, 32, 32, 3), np.uint8), np.zeros(4, np.int32))
    published = Images(np.full((6, 32, 32, 3), 255, np.uint8), np.ones(6, np.int32))
    wrong = published._replace(labels=np.zeros(6, np.int32))

    def read(config, name, severity):
        return {"frost": published, "fog": wrong}.get(name)

    monkeypatch.setattr(evaluate, "CORRUPTIONS", FEW)
    monkeypatch.setattr(evaluate, "read_corrupted", read)
    network = types.SimpleNamespace(logits=logits)
    (found,) = evaluate.evaluate_corrupted([network], images, Config(dataset="cifar10"))
    assert (found["frost"], found["fog"]) == (100, 0)
    assert found["weather"] == pytest.approx((100 + 0 + found["brightness"]) / 3)


def last_line(path):
    return path.read_text().splitlines()[-1]


@with_swept
def test_an_evaluation_belongs_to_the_last_epoch(swept, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(evaluate, "CORRUPTIONS", FEW)
    shutil.copytree(swept[0] / "rho0.05", tmp_path / "rho0.05")
    for file in tmp_path.rglob(EVALUATION):
        file.unlink()
    arguments = ["--out", str(tmp_path), "--seeds", "0", "1", "--each", EACH, "--rho 0.05"]
    whole, cut = read_runs([tmp_path]).table.index
    shutil.rmtree(cut / "checkpoints" / "10")
    assert evaluate.main([str(tmp_path), "--corruptions", "--images", "20"]) == 0
    assert "is not that of its last epoch" in capsys.readouterr().err
    assert (whole / EVALUATION).exists()
    assert not (cut / EVALUATION).exists()
    # Earlier results stay, until the run is trained again.
    assert evaluate.main([str(whole), "--renew-statistics"]) == 0
    renewed = json.loads((whole / EVALUATION).read_text())
    assert renewed["renewed_accuracy"] == renewed["test_accuracy"]  # an MLP has no statistics
    assert "fog" in json.loads((whole / EVALUATION).read_text())
    shutil.rmtree(whole / "checkpoints")
    assert sweep.main(arguments) == 0
    assert not (whole / EVALUATION).exists()


def test_runs_without_a_checkpoint_are_not_evaluated(tmp_path, capsys):
    path = fake_run(tmp_path / "a", 0, 1.0, dataset="digits", method="sgd")
    assert evaluate.main([str(path)]) == 2
    assert capsys.readouterr().err.splitlines() == [
        f"left out: {path} has no checkpoint",
        "evaluate: error: none of the runs could be evaluated",
    ]
    assert not (path / "checkpoints").exists()
    with pytest.raises(ValueError, match="holds no run"):
        evaluate.restore(tmp_path)


# --- The scripts behind the results ---


def commands_of(script, folder):
    """Runs a script with a stand-in for Python, and returns the arguments of each call."""
    stand_in = folder / "python"
    note = f"{shlex.quote(str(folder))}/$(date +%s%N)-$$.call"  # two may run at a time
    stand_in.write_text(f"#!/bin/bash\nprintf '%s\\0' \"$@\" > {note}\n")
    stand_in.chmod(stand_in.stat().st_mode | stat.S_IXUSR)
    environment = os.environ | {"PYTHON": str(stand_in)}
    subprocess.run(["bash", str(script), str(folder / "out")], env=environment, check=True)
    return [path.read_text().split("\0")[:-1] for path in sorted(folder.glob("*.call"))]


ONE_NUMBER = re.compile(r"--([a-z-]+) ([\d.e-]+)(?=\s+--|\s*$)")


@functools.cache
def parse_setting(setting, each, program):
    return sweep.make_point(setting, each, program).config(0, Path("out"))


def config_of(setting, options):
    """Settings that differ in numbers alone are parsed once, with 1 for each number."""
    ones = ONE_NUMBER.sub(r"--\1 1", setting)
    config = parse_setting(ones, options.each, options.program)
    numbers = {name.replace("-", "_"): text for name, text in ONE_NUMBER.findall(setting)}
    kinds = {name: type(getattr(config, name)) for name in numbers}
    return dataclasses.replace(config, **{name: kinds[name](numbers[name]) for name in numbers})


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_every_command_of_a_script_can_be_parsed(script, tmp_path):
    commands = commands_of(script, tmp_path)
    assert commands
    for _, module, *arguments in commands:
        program = importlib.import_module(module)
        if program is sweep:
            options = sweep.read_arguments(arguments)
            for setting in options.settings:
                check(config_of(setting, options))
        elif module == "examples.image_classification":
            check(read_config(arguments))
        else:
            read_options(program.Options, arguments)


def test_the_flatness_script_trains_and_analyzes_the_demo(tmp_path):
    (trained, analyzed) = commands_of(ROOT / "examples/experiments/runs/flatness.sh", tmp_path)
    options = sweep.read_arguments(trained[2:])
    configs = [
        sweep.make_point(setting, options.each).config(seed, options.out)
        for setting in options.settings
        for seed in options.seeds
    ]
    assert [config.out.parent.name for config in configs[::3]] == list(DEMO)
    assert [config.seed for config in configs] == 3 * [0, 1, 2]
    for config in configs:
        for name, value in DEMO[config.preset].settings.items():
            assert getattr(config, name) == value
    assert analyzed == ["-m", "examples.experiments.analyze", str(options.out)]


def test_each_method_has_four_settings_in_the_main_script():
    text = (
        (ROOT / "examples" / "experiments" / "runs" / "cifar10_small.sh")
        .read_text()
        .replace("\\\n", "")
    )
    lines = [x.strip() for x in text.splitlines() if x.strip().startswith(("clean", "noisy"))]
    commands = [x for x in lines if "()" not in x]
    assert len(commands) == 10
    for command in commands:
        expanded = subprocess.run(
            ["bash", "-c", command.replace(command.split()[0], "printf '%s\\n'", 1)],
            capture_output=True,
            text=True,
            check=True,
        ).stdout.splitlines()
        assert len(expanded) == 4
        assert len({shlex.split(line)[1] for line in expanded}) == 1


def test_the_results_have_the_written_tables():
    """Compares tables only. Numbers in prose are not checked."""
    folder = ROOT / "examples" / "experiments"
    pages = [(folder / name).read_text() for name in ("RESULTS.md", "RESULTS_TRANSFORMERS.md")]
    text = "\n".join(pages)
    tables = sorted((folder / "results").glob("*/table.md"))
    assert len(tables) >= 8
    for path in tables:
        rows = [line for line in path.read_text().splitlines() if line.startswith("|")]
        linked = f"(results/{path.parent.name}/table.md)" in text
        assert linked or "\n".join(rows) in text, path
    assert all(len(page.splitlines()) <= 250 for page in pages)
    for picture in re.findall(r"\]\((results/[^)]+\.png)\)", text):
        assert_is_a_picture(ROOT / "examples" / "experiments" / picture)
