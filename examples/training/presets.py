"""How published settings become the defaults of a command line. Each program has its own table."""

from collections.abc import Iterable
from dataclasses import replace
from typing import Any, NamedTuple, TypeVar

from examples.training.settings import Settings, defaults, ignored_settings, settings_ignored_by

Kind = TypeVar("Kind", bound=Settings)


class Preset(NamedTuple):
    """A published setting.

    Attributes:
      source: The table, and any setting that the table omits and that was chosen here.
      settings: Settings with their values.
    """

    source: str
    settings: dict[str, Any]


def drop_ignored(settings: dict[str, Any]) -> dict[str, Any]:
    """Returns the settings without those that the method ignores. An ignored rho is None."""
    ignored = settings_ignored_by(settings["method"])
    return {"rho": None} | {name: settings[name] for name in settings if name not in ignored}


def without_arguments(kind: type[Kind], preset: str | None, settings: dict[str, Any]) -> Kind:
    """Returns the configuration of a preset's settings, but for the arguments of the method."""
    return kind(**settings | {"preset": preset, "method_args": {}})


def adapt(config: Kind, settings: dict[str, Any], choices: Iterable[str]) -> Kind:
    """Completes a configuration that was derived from the settings of a preset, and may differ.

    Args:
      config: The configuration, with only those arguments of the method that are not the preset's.
      settings: The settings of the preset.
      choices: The settings that the name of a preset is made of.

    Returns:
      The configuration with the preset's arguments of the method, if the method is the same, and
      without those settings of the preset that another method ignores.
    """
    changes: dict[str, Any] = {}
    if config.method == settings["method"] and isinstance(config.method_args, dict):
        changes["method_args"] = {**settings.get("method_args", {}), **config.method_args}
    default = defaults(type(config))
    for name in ignored_settings(config):
        if getattr(config, name) == settings.get(name, default[name]):
            changes[name] = default[name]
    if any(getattr(config, name) != settings[name] for name in choices):
        changes["preset"] = None  # another run, in another folder
    return replace(config, **changes)
