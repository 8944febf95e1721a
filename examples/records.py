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

from examples.family import METHODS
from examples.image_classification.config import Config
from examples.image_classification.run_folder import MAY_CHANGE

OF_XSAM = ("rho_max", "probe_every", "alpha_max", "num_alphas")
# What the candidates of one method may differ in; that of its arguments and of the search is more.
TUNED = ("rho", "learning_rate", "weight_decay", "ascent_steps", *OF_XSAM)
ARGUMENT = "method_args."
BASE = "sam"  # what others are compared to


@dataclasses.dataclass(frozen=True)
class Run:
    """One finished run.

    Attributes:
      path: its folder.
      settings: what it was trained with, each argument of the method by itself; None is unused.
      metrics: a record an epoch, as in `metrics.jsonl`.
      evaluation: what `examples.evaluate` has found, if it was asked.
    """

    path: Path
    settings: Mapping[str, Any]
    metrics: Sequence[Mapping[str, float]]
    evaluation: Mapping[str, float]


@dataclasses.dataclass(frozen=True)
class Group:
    """Runs that differ in the seed alone.

    Attributes:
      settings: what they were trained with, without the seed.
      runs: in the order of their seeds.
    """

    settings: Mapping[str, Any]
    runs: Sequence[Run]

    @property
    def method(self) -> str:
        """The method's name."""
        return self.settings["method"]

    def last(self, name: str) -> np.ndarray:
        """Returns what the runs have at their end, of shape (runs,); NaN where they lack it."""
        ends = [{**run.metrics[-1], **run.evaluation} for run in self.runs]
        return np.array([end.get(name, np.nan) for end in ends])

    def has(self, name: str) -> bool:
        """Whether every run ends with such a number."""
        return not np.isnan(self.last(name)).any()

    def curves(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Returns the epochs that have it, and its values of shape (runs, epochs)."""
        records = [[r for r in run.metrics if name in r] for run in self.runs]
        common = min(records, key=len)
        values = [[r[name] for r in of_run[: len(common)]] for of_run in records]
        return np.array([record["epoch"] for record in common]), np.array(values)

    def epoch_seconds(self) -> np.ndarray:
        """Returns the median time of an epoch, of each run; the first one compiles."""
        times = [[r["seconds"] for r in run.metrics] for run in self.runs]
        return np.array([np.median(of_run[1:] or of_run) for of_run in times])

    def but(self, names: Iterable[str]) -> tuple[tuple[str, Any], ...]:
        """Returns all settings other than these, to compare groups by."""
        left_out = set(names)
        return tuple(sorted((k, str(v)) for k, v in self.settings.items() if k not in left_out))


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
                raise ValueError(f"{path} cannot be read: {error!r}") from error
            epochs = run.metrics[-1]["epoch"] if run.metrics else 0
            if epochs < run.settings["epochs"]:
                others.append(f"{path} is at epoch {epochs:g} of {run.settings['epochs']}")
            else:
                runs.append(run)
    return runs, others


def _read_run(path: Path) -> Run:
    config = json.loads((path / "config.json").read_text())
    settings = {**{f.name: None for f in dataclasses.fields(Config)}, **config}
    settings |= {ARGUMENT + key: value for key, value in (config["method_args"] or {}).items()}
    if not settings["method"].startswith("xsam"):
        settings |= dict.fromkeys(OF_XSAM)
    left_out = (*MAY_CHANGE, "method_args")
    settings = {key: value for key, value in settings.items() if key not in left_out}
    return Run(path, settings, _records(path / "metrics.jsonl"), _evaluation(path))


def _records(path: Path) -> list[dict[str, float]]:
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")]


def _evaluation(path: Path) -> dict[str, float]:
    path = path / "evaluation.json"
    return json.loads(path.read_text()) if path.exists() else {}


def group(runs: Sequence[Run]) -> list[Group]:
    """Returns the groups, in the order in which their first runs come.

    Raises:
      ValueError: two runs are the same, seed included.
    """
    groups: dict[Any, list[Run]] = {}
    for run in runs:
        key = Group(run.settings, ()).but(["seed"])
        twin = next(
            (r for r in groups.get(key, []) if r.settings["seed"] == run.settings["seed"]), None
        )
        if twin:
            raise ValueError(f"{twin.path} and {run.path} are the same run: give one of them")
        groups.setdefault(key, []).append(run)
    made = []
    for members in groups.values():
        members.sort(key=lambda run: run.settings["seed"])
        settings = {key: value for key, value in members[0].settings.items() if key != "seed"}
        made.append(Group(settings, members))
    return made


def _set_apart(name: str, groups: Sequence[Group]) -> bool:
    """Whether groups differ in a setting; radii are told wherever only some have one."""
    values = {str(member.settings.get(name)) for member in groups}
    if name not in ("rho", "rho_max"):
        values.discard("None")
    return name != "method" and len(values) > 1


class Comparison:
    """Groups side by side: what sets them apart, which are chosen, and which is whose base.

    Attributes:
      over: the setting of which no value is chosen.
      groups: all of them, by method in the order of `METHODS`, then by what sets them apart.
      names: the settings in which they differ, beside the method.
      tuned: the settings of which a value is chosen.
      chosen: of the candidates for each choice the group with the best mean validation accuracy;
        candidates that lack one are all chosen, since there is nothing to choose by.
    """

    def __init__(self, groups: Sequence[Group], over: str | None = None) -> None:
        """Takes the groups, and the name of a setting of which all values are wanted."""
        self.over = over
        self._all = list(dict.fromkeys(name for member in groups for name in member.settings))
        self.names = [name for name in self._all if _set_apart(name, groups)]
        self.groups = sorted(groups, key=self._order)
        arguments = [name for name in self._all if name.startswith(ARGUMENT)]
        self.tuned = [name for name in (*TUNED, *arguments) if name != over]
        self.chosen = self._choose()

    def _order(self, member: Group) -> Any:
        values = [member.settings.get(name) for name in self.names]
        numbers = [value if isinstance(value, int | float) else -1 for value in values]
        return list(METHODS).index(member.method), numbers

    def _choose(self) -> list[Group]:
        candidates: dict[Any, list[Group]] = {}
        for member in self.groups:
            candidates.setdefault(member.but(self.tuned), []).append(member)
        chosen: list[Group] = []
        for members in candidates.values():
            if len(members) > 1 and all(member.has("validation_accuracy") for member in members):
                members = [max(members, key=lambda g: g.last("validation_accuracy").mean())]
            chosen += members
        return [member for member in self.groups if member in chosen]

    def base(self, member: Group) -> Group | None:
        """Returns the chosen group of SAM that was trained alike, if there is exactly one."""
        bases = [g for g in self.chosen if g.method == BASE]
        lacked = [n for n in self._all if all(g.settings.get(n) is None for g in bases)]
        left_out = ["method", *self.tuned, *lacked]
        alike = [g for g in bases if g.but(left_out) == member.but(left_out)]
        return alike[0] if len(alike) == 1 else None

    def label(self, member: Group, but: Sequence[str] = ()) -> str:
        """Names a group by its method and what sets it apart."""
        values = [(name, member.settings.get(name)) for name in self.names if name not in but]
        parts = [f"{short(name)} {show(value)}" for name, value in values if value is not None]
        return ", ".join([member.method, *parts])


def short(name: str) -> str:
    """Returns the name of a setting without that of the group of settings it is in."""
    return name.removeprefix(ARGUMENT)


def show(value: Any) -> str:
    """Returns a setting as text."""
    if isinstance(value, list):
        return " ".join(map(str, value)) or "none"
    return f"{value:g}" if isinstance(value, float) else str(value)
