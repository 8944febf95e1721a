"""Sweeps, comparisons and evaluations: what they choose, what they say, what they write."""

import csv
import dataclasses
import json
import os
import shlex
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from test_examples import assert_is_a_picture

from benchmarks.run import parse_arguments
from examples import compare, evaluate, sweep
from examples.image_classification.config import Config, check
from examples.image_classification.corruptions import CORRUPTIONS, corrupt
from examples.image_classification.data import load
from examples.image_classification.streaming import Images
from examples.records import Comparison, group, read_runs

ROOT = Path(__file__).parents[1]
SCRIPTS = sorted((ROOT / "examples" / "runs").glob("*.sh"))


def fake_run(folder, seed, test, validation=None, epochs=3, seconds=2.0, done=None, **settings):
    """Writes what a run would leave, with accuracies that rise to those given."""
    config = Config(**{"validation_size": 100, "epochs": epochs, "seed": seed, **settings})
    path = Path(folder) / f"seed{seed}"
    path.mkdir(parents=True)
    text = json.dumps(dataclasses.asdict(config), default=str)
    (path / "config.json").write_text(text)
    records = []
    for epoch in range(1, (epochs if done is None else done) + 1):
        record = {
            "epoch": epoch,
            "gradients": 1.0 if config.method == "sgd" else 2.0,
            "gradient_norm": 1.0 / epoch,
            "sharp_gradient_norm": 1.5 / epoch,
            # The first epoch compiles.
            "seconds": 100.0 if epoch == 1 else seconds,
            "images_per_second": 10.0,
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


@pytest.fixture
def runs(tmp_path):
    """SGD, SAM at two rho of which validation prefers what the test does not, and XSAM."""
    for seed in (2, 10):
        fake_run(tmp_path / "sgd", seed, 70.0 + seed, 60.0, seconds=1.0, method="sgd")
        fake_run(tmp_path / "sam-good", seed, 80.0 + seed, 70.0, method="sam", rho=0.1)
        fake_run(tmp_path / "sam-lucky", seed, 99.0, 69.0, method="sam", rho=0.02)
        radii = {"rho": 0.1, "rho_max": 0.2}
        fake_run(tmp_path / "x", seed, 95 + 0.1 * seed, 71.0, seconds=2.5, method="xsam", **radii)
    return tmp_path


def compared(capsys, *arguments):
    """What the command prints: the lines of its table as lists of cells, and the other lines."""
    assert compare.main(list(map(str, arguments))) == 0
    lines = capsys.readouterr().out.splitlines()
    cells = [[cell.strip() for cell in x.strip("|").split("|")] for x in lines if x[:1] == "|"]
    return cells, [line for line in lines if line[:1] != "|"]


# --- Comparing ---


def test_the_table_has_means_and_shows_the_test_of_what_validation_chose(runs, capsys):
    cells, _ = compared(capsys, runs)
    assert cells[0] == [
        *("method", "rho", "rho_max", "seeds"),
        *("validation", "test", "gradients", "epoch / sam's"),
    ]
    # Of 72 and 80 the standard deviation is 8 / sqrt(2).
    assert cells[2:] == [
        ["sgd *", "", "", "2", "60.0 ±  0.0", "76.0 ±  5.7", "1", "0.5"],
        ["sam", "0.02", "", "2", "69.0 ±  0.0", "", "2", "1"],
        ["sam *", "0.1", "", "2", "70.0 ±  0.0", "86.0 ±  5.7", "2", "1"],
        ["xsam *", "0.1", "0.2", "2", "71.0 ±  0.0", "95.6 ±  0.6", "2", "1.25"],
    ]


def test_differences_are_to_sam_and_ties_are_said(runs, capsys):
    _, lines = compared(capsys, runs)
    # sqrt(32 / 2 + 32 / 2) and sqrt(0.32 / 2 + 32 / 2).
    assert "* sgd - sam, rho 0.1: -10.0, standard error 5.7: tie" in lines
    assert "* xsam, rho 0.1, rho_max 0.2 - sam, rho 0.1: +9.6, standard error 4.0" in lines
    found = [line for line in lines if line.startswith("* xsam") and "alpha_max" in line]
    assert found == [
        "* xsam, rho 0.1, rho_max 0.2: alpha 1.67 (1.75 in the second half), psi 30°, "
        "at alpha_max in 33 % of the epochs, at 0 in 0 % of the epochs"
    ]
    hours = 2 * (102 + 2 * 104 + 105) / 3600
    assert any(line.startswith(f"8 runs, {hours:.2f} hours of training.") for line in lines)


def test_csv_and_pictures_are_written(runs, tmp_path, capsys):
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


def test_over_a_setting_nothing_is_chosen(runs, capsys):
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
    assert (runs / "comparison" / "accuracy_over_rho.png").exists()


def test_over_what_sam_has_not_all_are_compared_with_the_same_sam(tmp_path, capsys):
    scales = {"first": 80.0, "last": 90.0}
    for seed in (0, 1):
        fake_run(tmp_path / "sam", seed, 85.0, method="sam", rho=0.1)
        for scale, test in scales.items():
            method = {"method": "xsam", "rho": 0.1, "rho_max": 0.2, "method_args": {"scale": scale}}
            fake_run(tmp_path / scale, seed, test, **method)
    cells, lines = compared(capsys, tmp_path, "--over", "scale")
    assert cells[0][:4] == ["method", "rho_max", "scale", "seeds"]
    assert sum(" - sam" in line for line in lines) == 2
    assert "* xsam, rho_max 0.2, scale first - sam: -5.0, standard error 0.0" in lines
    assert (tmp_path / "comparison" / "accuracy_over_scale.png").exists()


def test_runs_of_other_data_are_another_choice_and_have_another_sam(tmp_path, capsys):
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
        assert f"* asam, {label} - sam, {label}: +1.0, standard error 0.0" in lines


def test_tuning_and_unfinished_runs_are_left_out(runs, capsys):
    fake_run(runs / "tuning" / "sam", 0, 10.0, 99.0, method="sam", rho=0.5)
    fake_run(runs / "gsam", 0, 10.0, 99.0, done=2, method="gsam", rho=0.5)
    assert compare.main([str(runs)]) == 0
    captured = capsys.readouterr()
    assert "| sam | 0.5 |" not in captured.out
    assert "gsam" not in captured.out
    assert "gsam/seed0 is at epoch 2 of 3" in captured.err
    tuning, _ = read_runs([runs / "tuning"])
    assert [run.settings["rho"] for run in tuning] == [0.5]


def test_the_order_of_seeds_is_that_of_numbers(runs):
    groups = group(read_runs([runs])[0])
    assert {tuple(run.settings["seed"] for run in g.runs) for g in groups} == {(2, 10)}
    assert [g.method for g in Comparison(groups).groups] == ["sgd", "sam", "sam", "xsam"]


def broken(folder):
    path = fake_run(folder / "broken", 0, 1.0)
    (path / "config.json").write_text("{}")


BAD = {
    "no folder": (lambda f: None, ["nowhere"], "is no folder"),
    "no run": (lambda f: (f / "a").mkdir(), ["a"], "holds no run: there is no config.json"),
    "broken": (broken, ["broken"], "cannot be read"),
    "unfinished": (lambda f: fake_run(f / "a", 0, 1.0, done=1), ["a"], "none of the runs"),
    "twice": (
        lambda f: [fake_run(f / name, 0, 1.0, method="sgd") for name in "ab"],
        ["a", "b"],
        "are the same run: give one of them",
    ),
    "over": (
        lambda f: [fake_run(f / "a", s, 1.0, rho=0.1 * (s + 1), rho_max=0.3) for s in (0, 1)],
        ["a", "--over", "rhoo"],
        "the runs do not differ in 'rhoo'; did you mean 'rho'?",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_compare_says_what_is_wrong(case, tmp_path, monkeypatch, capsys):
    prepare, arguments, message = BAD[case]
    prepare(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert compare.main(arguments) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("compare: error: ")
    assert message in said


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
def test_the_calibration_error_is_the_papers(bins):
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(0, 2, (500, 5)).astype(np.float32), rng.integers(0, 5, 500)
    expected = reference_calibration_error(logits, labels, bins)
    assert expected > 5
    assert evaluate.calibration_error(logits, labels, bins) == pytest.approx(expected, rel=1e-9)


def test_the_calibration_error_of_the_sure_and_of_the_undecided():
    sure = np.array([[1e4, 0.0], [1e4, 0.0]], np.float32)
    assert evaluate.calibration_error(sure, np.array([0, 0])) == 0
    assert evaluate.calibration_error(sure, np.array([0, 1])) == 50
    even = np.zeros((2, 2), np.float32)
    assert evaluate.calibration_error(even, np.array([0, 1])) == pytest.approx(0)


# --- Sweeps and evaluations of real runs ---

EACH = "--dataset digits --train-size 320 --validation-size 100 --epochs 2"


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    """A choice between a learning rate and one that learns nothing, then two seeds."""
    out = tmp_path_factory.mktemp("sweep")
    arguments = ["--out", str(out), "--tune", "7", "--seeds", "0", "1", "--each", EACH]
    arguments += [f"--method sgd --learning-rate {rate}" for rate in ("1e-9", "0.05", "1e30")]
    assert sweep.main(arguments) == 0
    return out, arguments


def test_a_sweep_repeats_what_validation_chose(swept):
    out, _ = swept
    tuned = {path.parent.name for path in (out / "tuning").glob("*/seed7")}
    assert tuned == {f"sgd-learning_rate{rate}" for rate in ("1e-9", "0.05", "1e30")}
    chosen = {str(path.relative_to(out)) for path in out.glob("sgd*/seed*")}
    assert chosen == {f"sgd-learning_rate0.05/seed{seed}" for seed in (0, 1)}
    assert len(read_runs([out])[0]) == 2


def test_a_sweep_that_is_done_trains_nothing(swept, capsys):
    out, arguments = swept
    files = sorted(out.glob("*/seed*/checkpoints/*")) + sorted(
        out.glob("tuning/*/seed*/checkpoints/*")
    )
    before = [path.stat().st_mtime_ns for path in files]
    assert len(before) >= 4
    assert sweep.main(arguments) == 0
    assert [path.stat().st_mtime_ns for path in files] == before
    assert "sgd: sgd-learning_rate0.05 is best" in capsys.readouterr().err


def test_a_sweep_without_a_choice_trains_all(tmp_path):
    arguments = ["--out", str(tmp_path), "--seeds", "3", "--each", f"{EACH} --epochs 1"]
    assert sweep.main([*arguments, "--method sam --rho 0.1", "--method sam --rho 0.2"]) == 0
    names = sorted(str(path.parent.relative_to(tmp_path)) for path in tmp_path.rglob("config.json"))
    assert names == ["sam-rho0.1/seed3", "sam-rho0.2/seed3"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--method smm"], "unknown method 'smm'; did you mean 'sam'?"),
        (["--method sgd", "--tune", "0"], "--tune needs validation images"),
        (["--method sgd --rho 0.1"], "sgd does not use --rho: leave it out"),
        (["--method sam --rho -1"], "rho must be above 0, got -1.0"),
        (["--method sgd", "--method  sgd"], "'sgd' is there twice"),
        (["--method sgd", "--seeds", "1", "1"], "seeds must differ, got 1 1"),
    ],
)
def test_a_sweep_says_what_is_wrong_before_it_trains(arguments, message, tmp_path, capsys):
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
    ],
)
def test_folders_are_named_by_what_sets_runs_apart(setting, name):
    assert sweep.make_point(setting, "--epochs 1").name == name


def test_an_evaluation_finds_what_the_trainer_found(swept, capsys):
    out, _ = swept
    assert evaluate.main([str(out), "--corruptions"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 2
    runs, _ = read_runs([out])
    test = load(Config(dataset="digits", train_size=320, validation_size=100)).test
    assert isinstance(test, Images)
    for run in runs:
        found, last = run.evaluation, run.metrics[-1]
        assert found["images"] == 500
        assert found["test_accuracy"] == pytest.approx(last["test_accuracy"], rel=1e-6)
        assert found["test_loss"] == pytest.approx(last["test_loss"], rel=1e-5)
        names = [name for of_group in CORRUPTIONS.values() for name in of_group]
        assert found["corrupted"] == pytest.approx(np.mean([found[name] for name in names]))
        for title, of_group in CORRUPTIONS.items():
            assert found[title] == pytest.approx(np.mean([found[name] for name in of_group]))
    network = evaluate.restore(runs[0].path)
    for name in ("fog", "gaussian_noise"):
        accuracies = []
        for severity in (1, 2, 3, 4, 5):
            pixels = corrupt(test.pixels, name, severity, evaluate.SEED)
            logits, labels = network.logits(Images(pixels, test.labels))
            accuracies.append(100 * np.mean(np.argmax(logits, axis=1) == labels))
        assert runs[0].evaluation[name] == pytest.approx(np.mean(accuracies))
    assert compare.main([str(out)]) == 0
    header = capsys.readouterr().out.splitlines()[0]
    assert "| test | ECE | noise | blur | weather | digital | all corruptions |" in header


def test_an_evaluation_of_some_corrupted_images(swept):
    out, _ = swept
    assert evaluate.main([str(out), "--corruptions", "--images", "40"]) == 0
    found = read_runs([out])[0][0].evaluation
    assert (found["images"], found["corrupted_images"]) == (500, 40)
    assert found["fog"] in 0.5 * np.arange(201)  # of 40 images at five severities


def test_an_evaluation_says_what_is_wrong(tmp_path, capsys):
    path = fake_run(tmp_path / "a", 0, 1.0, dataset="digits", method="sgd")
    assert evaluate.main([str(path)]) == 2
    assert f"evaluate: error: {path} has no checkpoint" in capsys.readouterr().err
    with pytest.raises(ValueError, match="holds no run"):
        evaluate.restore(tmp_path)


# --- The scripts behind the results ---


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_every_command_of_a_script_is_one(script, tmp_path, monkeypatch):
    """A stand-in for Python notes its arguments; each is then read as its program would."""
    noted = tmp_path / "noted"
    stand_in = tmp_path / "python"
    stand_in.write_text(
        f"#!{sys.executable}\nimport json, sys\n"
        f"with open({str(noted)!r}, 'a') as file:\n    print(json.dumps(sys.argv[1:]), file=file)\n"
    )
    stand_in.chmod(stand_in.stat().st_mode | stat.S_IXUSR)
    environment = os.environ | {"PYTHON": str(stand_in)}
    subprocess.run(["bash", str(script), str(tmp_path / "out")], env=environment, check=True)
    commands = [json.loads(line) for line in noted.read_text().splitlines()]
    assert commands
    for module, *arguments in (command[1:] for command in commands):
        if module == "examples.sweep":
            options = sweep.parse_arguments(arguments)
            points = [sweep.make_point(setting, options.each) for setting in options.settings]
            for point in points:
                check(point.config(0, options.out))
        elif module == "benchmarks.run":
            parse_arguments(arguments)
        else:
            program = {"examples.compare": compare, "examples.evaluate": evaluate}[module]
            program.parse_arguments(arguments)


def test_scripts_give_each_method_as_many_settings():
    text = (ROOT / "examples" / "runs" / "cifar10_small.sh").read_text().replace("\\\n", "")
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
