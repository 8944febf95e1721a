"""What runs have left behind, read again: their settings, their metrics, and which belong together.

Runs that differ in nothing but the seed are a group. Groups that differ in no more than what a
method may be tuned by are the candidates of one choice, which falls on validation accuracy.
"""

import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from examples.image_classification.config import Config
from examples.image_classification.methods import (
    METHODS,
    find_method,
    method_arguments,
    read_argument,
)
from examples.image_classification.run_folder import EVALUATION, MAY_CHANGE

OF_XSAM = ("rho_max", "probe_every", "alpha_max", "num_alphas")
# What a method may be tuned by; its arguments, which are named "method_args.", are more of it.
TUNED = ("rho", "learning_rate", "weight_decay", "ascent_steps", *OF_XSAM)
ARGUMENT = "method_args."
Settings = Mapping[str, Any]


def but(settings: Settings, names: Iterable[str]) -> tuple[tuple[str, str], ...]:
    """Returns all settings other than these, to compare by."""
    left_out = set(names)
    return tuple(sorted((k, str(v)) for k, v in settings.items() if k not in left_out))


def is_tuned(name: str) -> bool:
    """Whether candidates for one choice may differ in a setting."""
    return name in TUNED or name.startswith(ARGUMENT)


def settings_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what a run was trained with: what its method does not look at is not in there.

    Args:
      config: the fields of `Config`.

    Returns:
      Of these what matters to the result, each argument of the method by itself.

    Raises:
      ValueError: the method or one of its arguments is unknown.
    """
    method = find_method(config["method"])
    unused = [*MAY_CHANGE, "method_args"]
    unused += ["rho"] * (method.scale is None) + ["ascent_steps"] * (not method.steps)
    unused += OF_XSAM if not config["method"].startswith("xsam") else ()
    settings = {key: value for key, value in config.items() if key not in unused}
    given = config["method_args"] or {}
    for key, default in method_arguments(config["method"]).items():
        settings[ARGUMENT + key] = read_argument(key, given.get(key, default), default)
    return settings


@dataclasses.dataclass(frozen=True)
class Run:
    """One finished run.

    Attributes:
      path: its folder.
      settings: what it was trained with, by `settings_of`.
      metrics: a record an epoch, as in `metrics.jsonl`.
      evaluation: what `examples.experiments.evaluate` has found, if it was asked.
    """

    path: Path
    settings: Settings
    metrics: Sequence[Mapping[str, float]]
    evaluation: Mapping[str, float]


@dataclasses.dataclass(frozen=True)
class Group:
    """Runs that differ in the seed alone.

    Attributes:
      settings: what they were trained with, without the seed.
      runs: in the order of their seeds.
    """

    settings: Settings
    runs: Sequence[Run]

    @property
    def method(self) -> str:
        """The method's name."""
        return self.settings["method"]

    def last(self, name: str) -> np.ndarray:
        """Returns what the runs have at their end, of shape (runs,); NaN where they lack it."""
        ends = [{**run.evaluation, **run.metrics[-1]} for run in self.runs]
        return np.array([end.get(name, np.nan) for end in ends])

    def has(self, name: str) -> bool:
        """Whether every run ends with such a number."""
        return not np.isnan(self.last(name)).any()

    def curves(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Returns the epochs in which all runs have it, and its values of shape (runs, epochs)."""
        of_runs = [{r["epoch"]: r[name] for r in run.metrics if name in r} for run in self.runs]
        epochs = sorted(set.intersection(*map(set, of_runs)))
        return np.array(epochs), np.array([[run[epoch] for epoch in epochs] for run in of_runs])

    def epoch_seconds(self) -> np.ndarray:
        """Returns the median time of an epoch, of each run; the first one compiles."""
        times = [[r["seconds"] for r in run.metrics] for run in self.runs]
        return np.array([np.median(of_run[1:] or of_run) for of_run in times])


def read_runs(folders: Sequence[Path]) -> tuple[list[Run], list[str]]:
    """Reads the runs in these folders and in all folders below them.

    What lies below a folder named `tuning` was trained for a choice only: it is left out, unless
    the folder given is that one or in it.

    Returns:
      The finished runs, and in words which others there are.

    Raises:
      ValueError: a folder is not there, holds no run, or its files cannot be read.
    """
    runs, others, seen = [], [], set()
    for folder in folders:
        if not folder.is_dir():
            raise ValueError(f"{folder} is no folder")
        paths = sorted(path.parent for path in folder.rglob("config.json"))
        if not paths:
            raise ValueError(f"{folder} holds no run: there is no config.json in it or below it")
        for path in paths:
            tuning = "tuning" in path.relative_to(folder).parts
            if tuning or path.resolve() in seen:
                continue
            seen.add(path.resolve())
            try:
                run = _read_run(path)
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(f"{path} cannot be read: {error}") from error
            epochs = run.metrics[-1]["epoch"] if run.metrics else 0
            if epochs < run.settings["epochs"]:
                others.append(f"{path} is at epoch {epochs:g} of {run.settings['epochs']}")
            else:
                runs.append(run)
    return runs, others


def _read_run(path: Path) -> Run:
    defaults = {f.name: f.default for f in dataclasses.fields(Config)} | {"method_args": {}}
    settings = settings_of({**defaults, **read_json(path / "config.json")})
    lines = path / "metrics.jsonl"
    texts = lines.read_text().splitlines() if lines.exists() else []
    metrics = [json.loads(text) for text in texts if text.endswith("}")]
    if metrics and settings.get("probe_every", 0) is None:
        settings["probe_every"] = metrics[-1]["step"] // metrics[-1]["epoch"]
    return Run(path, settings, metrics, read_json(path / EVALUATION))


def read_json(path: Path) -> dict[str, Any]:
    """Returns what is in a file; nothing, where there is none."""
    return json.loads(path.read_text()) if path.exists() else {}


def group(runs: Sequence[Run]) -> list[Group]:
    """Returns the groups, in the order in which their first runs come.

    Raises:
      ValueError: two runs are the same, seed included.
    """
    groups: dict[Any, dict[int, Run]] = {}
    for run in runs:
        members = groups.setdefault(but(run.settings, ["seed"]), {})
        twin = members.setdefault(run.settings["seed"], run)
        if twin is not run:
            raise ValueError(f"{twin.path} and {run.path} are the same run: give one of them")
    made = []
    for members in groups.values():
        of_seeds = [members[seed] for seed in sorted(members)]
        settings = {k: v for k, v in of_seeds[0].settings.items() if k != "seed"}
        made.append(Group(settings, of_seeds))
    return made


class Comparison:
    """Groups side by side: what sets them apart, which are chosen, and which is whose base.

    Attributes:
      over: the setting of which no value is chosen.
      against: the method that others are compared to.
      groups: all of them, by method in the order of `METHODS`, then by what sets them apart.
      names: the settings in which they differ, beside the method.
      shared: the other settings, by the methods that have them.
      tuned: the settings of which a value is chosen.
      chosen: of the candidates for each choice the group with the best mean validation accuracy.
        One with fewer seeds than another is no candidate. Where one lacks validation accuracy
        all are chosen, since there is nothing to choose by.
    """

    def __init__(
        self, groups: Sequence[Group], over: str | None = None, against: str = "sam"
    ) -> None:
        """Takes the groups; a setting of which all values are wanted; the base's method."""
        self.over, self.against = over, against
        every = list(dict.fromkeys(name for member in groups for name in member.settings))
        every.remove("method")
        self.names: list[str] = []
        self.shared: dict[tuple[str, ...], dict[str, Any]] = {}
        for name in every:
            having = [member for member in groups if name in member.settings]
            values = {str(member.settings[name]) for member in having}
            told = name in ("rho", "rho_max") and len(having) < len(groups)
            if len(values) > 1 or told:
                self.names.append(name)
            else:
                methods = tuple(dict.fromkeys(member.method for member in having))
                self.shared.setdefault(methods, {})[name] = having[0].settings[name]
        self.groups = sorted(groups, key=self._order)
        self.tuned = [name for name in every if is_tuned(name) and name != over]
        self._of_base = set().union(*(g.settings for g in groups if g.method == self.against))
        self.chosen = self._choices()

    def _order(self, member: Group) -> Any:
        names = sorted(self.names, key=lambda name: name != self.over)  # that one first
        values = [member.settings.get(name) for name in names]
        numbers = [value if isinstance(value, int | float) else -1 for value in values]
        return list(METHODS).index(member.method), numbers

    def candidates(self, member: Group) -> list[Group]:
        """Returns the groups of the choice to which this one belongs."""
        key = but(member.settings, self.tuned)
        return [other for other in self.groups if but(other.settings, self.tuned) == key]

    def _choices(self) -> list[Group]:
        chosen = []
        for member in self.groups:
            rivals = self.candidates(member)
            if all(rival.has("validation_accuracy") for rival in rivals):
                seeds = max(len(rival.runs) for rival in rivals)
                complete = [rival for rival in rivals if len(rival.runs) == seeds]
                best = max(complete, key=lambda g: g.last("validation_accuracy").mean())
                chosen += [best] if member is best else []
            else:
                chosen.append(member)
        return chosen

    def base(self, member: Group) -> Group | None:
        """Returns the chosen group of the base that was trained alike, if there is exactly one."""
        left_out = {"method", *self.tuned, *(member.settings.keys() - self._of_base)}
        key = but(member.settings, left_out)
        bases = [
            g for g in self.chosen if g.method == self.against and but(g.settings, left_out) == key
        ]
        return bases[0] if len(bases) == 1 else None

    def label(self, member: Group, without: Sequence[str] = ()) -> str:
        """Names a group by its method and what sets it apart."""
        names = [name for name in self.names if name in member.settings and name not in without]
        parts = [f"{short(name)} {show(member.settings[name])}" for name in names]
        return ", ".join([member.method, *parts])


def short(name: str) -> str:
    """Returns the name of a setting without that of the group of settings it is in."""
    return name.removeprefix(ARGUMENT)


def show(value: Any) -> str:
    """Returns a setting as text."""
    if isinstance(value, list | tuple):
        return " ".join(map(str, value)) or "none"
    if value is None:
        return "default"
    return f"{value:g}" if isinstance(value, float) else str(value)
