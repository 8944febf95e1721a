"""Groups of runs, and the choice among them.

Runs that differ only in the seed form a group. Groups that differ only in settings that are tuned
are candidates of one choice, which the mean validation accuracy (or BLEU) decides.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from examples.experiments.read_runs import (
    ABSENT,
    Runs,
    format_setting,
    is_tuned,
    number_groups,
    short_name,
)
from examples.training.methods import METHODS


class Comparison:
    """Groups of runs, the settings in which they differ, and the choices among them.

    Attributes:
      runs: all runs.
      over: the setting of which no value is chosen.
      against: the method that others are compared with.
      members: the folders of the runs of each group, in the order of their seeds.
      groups: the settings of the groups, a row a group, by method in the order of `METHODS`, then
        by the settings that differ.
      names: the settings that differ, without the method.
      shared: the other settings, by the methods that have them.
      tuned: the settings of which a value is chosen.
      validation: the name of the metric of validation data.
      test: the name of the metric of test data.
      chosen: for each choice the candidate with the highest mean validation accuracy. Groups with
        fewer seeds than another are no candidates. Where a candidate lacks validation accuracy all
        are chosen.
    """

    def __init__(self, runs: Runs, over: str | None = None, against: str = "sam") -> None:
        """Groups the runs.

        Raises:
          ValueError: two runs are equal, seed included.
        """
        self.runs, self.over, self.against = runs, over, against
        metric = runs.program.metric
        self.validation, self.test = f"validation_{metric}", f"test_{metric}"
        settings = runs.table["settings"].sort_values("seed", kind="stable")
        for _, twins in settings.groupby(number_groups(settings, [])):
            if len(twins) > 1:
                one, other = twins.index[:2]
                raise ValueError(f"{one} and {other} are the same run: give one of them")
        numbers = number_groups(runs.table["settings"], ["seed"])
        self.members = pd.Series({n: list(s.index) for n, s in settings.groupby(numbers)})
        groups = settings.drop(columns="seed").groupby(numbers).first()
        self.names: list[str] = []
        self.shared: dict[tuple[str, ...], dict[str, Any]] = {}
        for name in groups.columns.drop("method"):
            values = groups[name][groups[name] != ABSENT]
            radius_of_some = name in ("rho", "rho_max") and 0 < len(values) < len(groups)
            if values.nunique() > 1 or radius_of_some:
                self.names.append(name)
            elif len(values):
                of_methods = tuple(groups["method"][values.index].unique())
                self.shared.setdefault(of_methods, {})[name] = values.iloc[0]
        order = ["method", *sorted(self.names, key=lambda name: name != over)]
        self.groups = groups.sort_values(order, key=_sort_key, kind="stable")
        self.tuned = [name for name in groups if is_tuned(name) and name != over]
        self._choices = number_groups(self.groups, self.tuned)
        self.chosen = self._choose()

    def _choose(self) -> list[int]:
        accuracies = self.last(self.validation).map(np.mean, na_action="ignore")
        seeds = self.members.map(len)
        chosen: set[int] = set()
        for _, rivals in accuracies.groupby(self._choices):
            if rivals.isna().any():  # nothing to choose by
                chosen.update(rivals.index)
            else:
                counts = seeds[rivals.index]
                chosen.add(rivals[counts == counts.max()].astype(float).idxmax())
        return [group for group in self.groups.index if group in chosen]

    def choice(self) -> "Comparison":
        """Returns a comparison of the chosen groups."""
        runs = self.runs.select(self.members[self.chosen].sum())
        return Comparison(runs, against=self.against)

    def settings(self, group: int) -> dict[str, Any]:
        """Returns the settings that the method of a group has."""
        row = self.groups.loc[group]
        return dict(row[row != ABSENT])

    def last(self, name: str) -> pd.Series:
        """Returns a metric at the end of the runs: by group an array, None where a run lacks it."""
        ends = self.runs.table["last"].reindex(columns=[name])[name]
        found = self.members.loc[self.groups.index].map(lambda runs: ends[runs].to_numpy(float))
        return found.map(lambda values: None if np.isnan(values).any() else values)

    def seeds(self, group: int) -> np.ndarray:
        """Returns the seeds of a group, in the order of `last`."""
        return self.runs.table["settings"].loc[self.members[group], "seed"].to_numpy(int)

    def curves(self, group: int, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Returns the epochs in which all runs have a metric, and its values (runs, epochs)."""
        metric = self.runs.epochs.reindex(columns=[name])[name]
        of_group = metric.unstack("epoch").loc[self.members[group]].dropna(axis=1)
        return of_group.columns.to_numpy(float), of_group.to_numpy(float)

    def candidates(self, group: int) -> list[int]:
        """Returns the groups of the choice that a group belongs to."""
        return list(self.groups.index[self._choices == self._choices[group]])

    def base(self, group: int) -> int | None:
        """Returns the chosen group of `against` with equal settings, if there is exactly one.

        Tuned settings may differ, and settings that no run of `against` has.
        """
        bases, own = self.groups[self.groups["method"] == self.against], self.groups.loc[group]
        foreign = [name for name in bases if own[name] != ABSENT and (bases[name] == ABSENT).all()]
        equal = bases.columns.drop({"method", *self.tuned, *foreign})
        alike = bases.index[(bases[equal] == own[equal]).all(axis=1)].intersection(self.chosen)
        return alike[0] if len(alike) == 1 else None

    def label(self, group: int, without: Sequence[str] = ()) -> str:
        """Returns the method of a group and the settings in which it differs from others."""
        settings = self.settings(group)
        names = [name for name in self.names if name in settings and name not in without]
        parts = [f"{short_name(name)} {format_setting(settings[name])}" for name in names]
        return ", ".join([settings["method"], *parts])

    def describe(self) -> pd.DataFrame:
        """Returns the first columns of a table: the method, * if chosen, settings, and seeds."""
        table = self.groups[["method", *self.names]].rename(columns=short_name)
        if len(self.chosen) < len(self.groups):
            table.loc[self.chosen, "method"] += " *"
        table["seeds"] = self.members.map(len)
        return table


def _sort_key(values: pd.Series) -> pd.Series:
    if values.name == "method":
        return values.map(list(METHODS).index)
    return pd.to_numeric(values, errors="coerce").fillna(-1)
