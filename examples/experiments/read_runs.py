"""Reads the runs that the trainer has written: settings, metrics, and evaluations."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from examples.experiments.training_programs import PROGRAMS, read_config_file
from examples.training.methods import method_arguments, read_argument
from examples.training.run_folder import (
    EVALUATION,
    MAY_CHANGE,
    parse_object,
)
from examples.training.settings import XSAM_SETTINGS, Settings, settings_ignored_by

# The settings that a method may be tuned by. Arguments of the method are tuned, too.
TUNED = ("rho", "learning_rate", "weight_decay", "ascent_steps", *XSAM_SETTINGS)
# Settings of which a best value at the edge of those tried is reported.
EDGES = ("rho", "rho_max", "learning_rate", "weight_decay")
ARGUMENT = "method_args."  # prefix of the arguments of a method
ABSENT = ""  # the value of a setting that a method does not have


# --- Settings ---


def is_tuned(name: str) -> bool:
    """Whether the candidates of one choice may differ in a setting."""
    return name in TUNED or name.startswith(ARGUMENT)


def used_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the settings that influence the result of a run.

    Args:
      config: the fields of `Config`.

    Returns:
      The settings that the method uses, each argument of the method under its own name. Values are
      numbers or text.

    Raises:
      ValueError: the method or one of its arguments is unknown.
    """
    unused = [*MAY_CHANGE, "method_args", *settings_ignored_by(config["method"])]
    # One group is none, as for methods that cannot have groups.
    unused += [key for key in ("groups", "accumulate", "sharp_every") if config[key] == 1]
    unused += [key for key in ("image_size",) if config.get(key) is None]
    unused += [key for key in ("warmup_steps",) if not config[key]]
    unused.append("beta_2" if config["optimizer"] == "sgd" else "momentum")
    settings = {key: value for key, value in config.items() if key not in unused}
    given = config["method_args"] or {}
    for key, default in method_arguments(config["method"]).items():
        settings[ARGUMENT + key] = read_argument(key, given.get(key, default), default)
    return {
        key: value if isinstance(value, int | float) else format_setting(value)
        for key, value in settings.items()
    }


def tabulate_settings(settings: Sequence[Mapping[str, Any]], index: Iterable[Any]) -> pd.DataFrame:
    """Returns a table with a column a setting, `ABSENT` where a method does not have it."""
    return pd.DataFrame(settings, list(index), dtype=object).fillna(ABSENT)


def number_groups(settings: pd.DataFrame, differ: Iterable[str]) -> pd.Series:
    """Numbers the groups of rows that are equal in all settings but those named in `differ`."""
    equal = [name for name in settings if name not in set(differ)]
    return settings.groupby(equal, sort=False).ngroup()


def short_name(name: str) -> str:
    """Returns the name of a setting without the prefix of method arguments."""
    return name.removeprefix(ARGUMENT)


def format_setting(value: Any) -> str:
    """Returns a setting as text."""
    if isinstance(value, list | tuple):
        return " ".join(map(str, value)) or "none"
    if value is None:
        return "default"
    return f"{value:g}" if isinstance(value, float) else str(value)


# --- Files ---


class Runs(NamedTuple):
    """Finished runs.

    Attributes:
      table: a row a run, by its folder. Columns ("settings", name) are those of `used_settings`.
        Columns ("last", name) are the metrics of the last epoch, the results of
        `examples.experiments.evaluate`, `epoch_seconds` (the median) and `total_seconds`.
      epochs: the metrics of all epochs, by folder and epoch.
      unfinished: a description of each run that is not finished.
      program: the settings of their program, with its metric and its unit.
    """

    table: pd.DataFrame
    epochs: pd.DataFrame
    unfinished: list[str]
    program: type[Settings]

    def select(self, folders: Sequence[Path]) -> "Runs":
        """Returns some of the runs."""
        return self._replace(table=self.table.loc[list(folders)])


def read_runs(folders: Sequence[Path]) -> Runs:
    """Reads the runs in these folders and in all folders below them.

    Skips folders named `tuning`, whose runs were trained only for a choice, unless the given folder
    is one or lies in one.

    Raises:
      ValueError: a folder does not exist, holds no run, no run is finished, a file cannot be read,
        or the runs are of several programs.
    """
    settings, last, epochs, unfinished, programs = {}, {}, {}, [], {}
    for path in find_runs(folders):
        if not (path / "config.json").exists():
            unfinished.append(f"{path} has no config.json")
            continue
        config = read_config_file(path)
        of_run, metrics = read_settings(path, config), read_metrics(path)
        done = metrics["epoch"].iloc[-1] if len(metrics) else 0
        if done < of_run["epochs"]:
            unfinished.append(f"{path} is at epoch {done:g} of {of_run['epochs']}")
            continue
        end = metrics.iloc[-1]
        if of_run.get("probe_every") == format_setting(None):
            of_run["probe_every"] = int(end["step"] // end["epoch"])
        seconds = metrics["seconds"]
        compiled = seconds.iloc[1:] if len(seconds) > 1 else seconds  # the first epoch compiles
        times = {"epoch_seconds": compiled.median(), "total_seconds": seconds.sum()}
        settings[path], epochs[path] = of_run, metrics.set_index("epoch")
        programs[config.program] = type(config)
        last[path] = read_evaluation(path) | dict(end.dropna()) | times
    if not settings:
        raise ValueError("none of the runs is finished")
    if len(programs) > 1:
        raise ValueError(f"the runs are of {' and '.join(programs)}: give those of one program")
    (program,) = programs.values()
    parts = {
        "settings": tabulate_settings(list(settings.values()), settings),
        "last": pd.DataFrame(list(last.values()), list(last)),
    }
    return Runs(pd.concat(parts, axis=1), pd.concat(epochs, names=["run"]), unfinished, program)


def find_runs(folders: Sequence[Path]) -> list[Path]:
    """Returns the folders of runs, each once.

    Raises:
      ValueError: a folder does not exist or holds no run.
    """
    found: dict[Path, Path] = {}
    if not folders:
        raise ValueError("give the folder of a run, or one with runs below")
    for folder in folders:
        if not folder.is_dir():
            raise ValueError(f"{folder} is no folder")
        files = folder.rglob("*.json*")
        paths = sorted({f.parent for f in files if f.name in ("config.json", "metrics.jsonl")})
        if not paths:
            raise ValueError(f"{folder} holds no run: there is no config.json in it or below it")
        for path in paths:
            if "tuning" not in path.relative_to(folder).parts:
                found.setdefault(path.resolve(), path)
    return list(found.values())


def read_settings(path: Path, config: Settings) -> dict[str, Any]:
    """Returns the settings of the run in a folder, by `used_settings`."""
    try:
        return used_settings(dataclasses.asdict(config))
    except ValueError as error:
        raise ValueError(f"{path / 'config.json'} cannot be read: {error}") from error


def read_metrics(path: Path) -> pd.DataFrame:
    """Returns the metrics of the run in a folder, a row an epoch."""
    file, names = path / "metrics.jsonl", ["epoch", "step", "seconds"]
    lines = file.read_bytes().splitlines() if file.exists() else []
    whole = [line for line in lines if line.endswith(b"}")]  # the last one may be cut off
    records = [parse_object(file, line, names, int | float) for line in whole]
    metrics = pd.DataFrame(records, columns=None if records else names)
    if metrics[names].isna().any(axis=None):
        raise ValueError(f"{file} cannot be read: one of {', '.join(names)} is not a number")
    return metrics.drop_duplicates("epoch", keep="last")


def read_evaluation(path: Path) -> dict[str, Any]:
    """Returns the results of `examples.experiments.evaluate` for a run, if there are any."""
    file, names = path / EVALUATION, PROGRAMS[read_config_file(path).program].evaluation
    return parse_object(file, file.read_bytes(), names, int | float) if file.exists() else {}
