"""Runs in one program: each has the results that it has alone."""

import dataclasses
import json
import os
import signal

import jax
import numpy as np
import pytest
from runs import assert_bit_equal, assert_equal_to_rounding, digits, last_state, numbers, records

from examples.image_classification import __main__ as entry
from examples.image_classification import many_runs
from examples.image_classification.command_line import parse_seeds, read_configs
from examples.image_classification.config import Config
from examples.image_classification.many_runs import train_together
from examples.training.progress import Stopped, StopRequest
from examples.training.run_folder import Diverged
from examples.training.train import train


def several(folder, seeds=(3, 7), **changes):
    """Runs with wrong labels, which are others for each seed."""
    config = digits(None, **{"label_noise": 0.4, **changes})
    return [dataclasses.replace(config, seed=s, out=folder / f"seed{s}") for s in seeds]


def test_runs_together_are_the_runs_alone(tmp_path):
    configs = several(tmp_path / "together", method="xsam")
    # Also numbers that the program takes as arguments.
    changes = {"rho": 0.2, "learning_rate": 0.03, "weight_decay": 1e-2}
    configs[1] = dataclasses.replace(configs[1], **changes)
    results = train_together(configs, show=False)
    for config, history in zip(configs, results, strict=True):
        alone = dataclasses.replace(config, out=tmp_path / f"alone{config.seed}")
        assert_equal_to_rounding(history, train(alone, show=False))
        assert history == records(config.out)
        assert json.loads((config.out / "config.json").read_text())["seed"] == config.seed
        assert last_state(config.out).keys() == last_state(alone.out).keys()
        assert train(config, show=False) == history  # it is finished
    assert numbers(results[0]) != numbers(results[1])


def test_runs_share_their_counters(tmp_path):
    """Under a batched counter the conditional of the search would be a select, and probe always."""
    runs = many_runs.prepare_all(several(tmp_path, method="xsam"))
    states = [run.program.init(run.traced) for run in runs]
    together = many_runs.Together(runs, states, [[], []])
    rows = np.zeros((2, 1, 64), np.int32)
    arguments = together._state, together._arrays, rows, together._traced
    lowered = together._program.train_steps.lower(*arguments)
    # The conditionals of the search and of the angle are not those of the choice of the platform.
    assert lowered.as_text().count("stablehlo.case") > 1
    for leaf in jax.tree.leaves(together._state.step):
        assert leaf.shape == ()


def test_settings_of_a_sweep_share_a_compiled_program(tmp_path):
    for rho in (0.1, 0.2):
        train_together(several(tmp_path / str(rho), method="sam", rho=rho, epochs=1), show=False)
    [run, *_] = many_runs.prepare_all(several(tmp_path / "0.1", method="sam", rho=0.1, epochs=1))
    assert many_runs.vmapped(run.program).train_steps._cache_size() == 1


def test_runs_that_were_stopped_resume_with_equal_bits(tmp_path, monkeypatch):
    whole = several(tmp_path / "whole", steps_per_dispatch=2)
    train_together(whole, show=False)
    configs = several(tmp_path / "stopped", steps_per_dispatch=2)
    calls = iter(range(100))

    def requested(self):
        # Within the second epoch: one has three calls, and one more after it. A request stays.
        self.is_agreed = next(calls) >= 5
        return self.is_agreed

    with monkeypatch.context() as patch:
        patch.setattr(StopRequest, "requested", requested)
        with pytest.raises(Stopped, match=r"stopped after step 9, which is saved in .*stopped"):
            train_together(configs, show=False)
    results = train_together(configs, show=False)
    for config, expected, history in zip(configs, whole, results, strict=True):
        assert numbers(history) == numbers(records(expected.out))
        assert_bit_equal(last_state(config.out), last_state(expected.out))


def test_a_signal_during_an_evaluation_stops_the_runs_after_it(tmp_path, monkeypatch):
    configs = several(tmp_path / "stopped", method="sgd")
    evaluate = many_runs.Together._evaluate_split

    def signalled(self, split):
        os.kill(os.getpid(), signal.SIGTERM)
        return evaluate(self, split)

    monkeypatch.setattr(many_runs.Together, "_evaluate_split", signalled)
    with pytest.raises(Stopped, match="stopped after step 5, which is saved"):
        train_together(configs, show=False)
    for config in configs:
        assert len(records(config.out)) == 1
        assert last_state(config.out)["step"] == 5


def test_runs_at_other_steps_are_trained_apart(tmp_path):
    configs = several(tmp_path, seeds=(0, 1, 2))
    finished = train(configs[1], show=False)
    results = train_together(configs, show=False)
    assert results[1] == finished
    assert [len(history) for history in results] == [3, 3, 3]


def test_a_run_that_diverges_does_not_stop_the_others(tmp_path):
    configs = several(tmp_path, seeds=(0, 1), method="sam")
    alone = train(dataclasses.replace(configs[0], out=tmp_path / "alone"), show=False)
    configs[1] = dataclasses.replace(configs[1], rho=1e30)
    fine, error = train_together(configs, show=False)
    assert_equal_to_rounding(fine, alone)
    assert isinstance(error, Diverged)
    assert "the loss or the update of step 0 is not finite" in str(error)
    assert not records(configs[1].out)


def test_the_command_line_has_ranges_of_seeds(tmp_path, capsys):
    out = str(tmp_path / "run")
    words = ["--out", out, "--epochs", "1", "--train-size", "128", "--method", "sam"]
    assert entry.main([*words, "--seeds", "0:2", "5"]) == 0
    lines = capsys.readouterr().out.splitlines()
    ends = [records(tmp_path / "run" / f"seed{seed}")[-1] for seed in (0, 1, 5)]
    values = [end["test_accuracy"] for end in ends]
    mean, error = np.mean(values), np.std(values, ddof=1) / np.sqrt(3)
    assert lines[-1] == f"test {mean:.2f} %, standard error {error:.2f}, 3 seeds"
    default = read_configs(["--seeds", "4"])
    assert (default[0].seed, default[0].out) == (4, None)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--seeds", "0:b"], "--seeds must be numbers, or a range such as 0:32, not '0:b'"),
        (["--seeds", "3:3"], "--seeds 3:3 has no seed"),
        (["--seeds", "0:3", "2"], "seeds must differ, got 0:3 2"),
        (["--seeds", "0:3", "--seed", "1"], "give --seed or --seeds, not both"),
        (["--seeds", "0:2", "--distributed"], "leave --distributed out"),
    ],
)
def test_wrong_seeds_are_one_line(words, message, capsys):
    assert entry.main(words) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert message in line


def test_runs_that_differ_in_other_settings_are_refused(tmp_path):
    first, second = several(tmp_path)
    with pytest.raises(ValueError, match="may differ in seed, rho, rho_max, learning_rate"):
        train_together([first, dataclasses.replace(second, epochs=4)])


def test_seeds_of_a_command_line():
    assert parse_seeds(["0:3", "7"]) == (0, 1, 2, 7)
    assert many_runs.is_worthwhile(Config(model="vit_ti"))
    assert not many_runs.is_worthwhile(Config(model="resnet18"))  # tests run on CPU
