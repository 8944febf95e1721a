"""The settings of the XSAM paper's table 9 for translation, and defaults for other choices.

The table has the epochs, the tokens of a batch, Adam's constants, weight decay, label smoothing and
radii. The paper leaves the rest to fairseq, and this is from its recipe for these data:
4,000 steps of warmup, then the inverse square root, dropout 0.3, 10,000 joint byte pairs, beam 5.
The paper does not say whether it averages the last checkpoints. They are not averaged here.
"""

import copy
from typing import Any

from examples.training.check_name import check_name
from examples.training.methods import find_method
from examples.training.presets import Preset, drop_ignored

RHO = 0.15  # of SAM

TABLE_9: dict[str, Any] = {
    "model": "transformer_iwslt",
    "vocabulary": 10_000,
    "epochs": 300,
    "batch_tokens": 4096,
    "optimizer": "adamw",
    "learning_rate": 5e-4,
    "schedule": "inverse_sqrt",
    "warmup_steps": 4000,
    "beta_2": 0.98,
    "weight_decay": 0.3,
    "label_smoothing": 0.1,
    "dropout": 0.3,
    "beam": 5,
    "rho": RHO,
    "rho_max": 0.45,
    "probe_every": None,
    "alpha_max": 2.0,
    "num_alphas": 21,
}


def _row(method: str) -> Preset:
    source = "XSAM, table 9; warmup, schedule, dropout, vocabulary and beam are fairseq's"
    return Preset(source, drop_ignored(TABLE_9 | {"method": method}))


PRESETS = {
    "iwslt14-adamw": _row("sgd"),
    "iwslt14-sam": _row("sam"),
    "iwslt14-xsam": _row("xsam"),
}

# For small data, such as Multi30k, on a CPU.
SMALL: dict[str, Any] = {
    "epochs": 20,
    "learning_rate": 1e-3,
    "warmup_steps": 400,
    "rho": RHO,
    "rho_max": 2 * RHO,
}


def settings_for(preset: str | None, model: str, method: str) -> dict[str, Any]:
    """Returns the default settings of a choice, in a new dictionary.

    Args:
      preset: A name of `PRESETS`, whose settings are returned. The other arguments are ignored.
      model: The model without a preset.
      method: A name of `METHODS`. Its radius is the radius of SAM times the usual ratio of the two.

    Raises:
      ValueError: The preset or the method is unknown.
    """
    if preset is not None:
        check_name("preset", preset, PRESETS, " (--preset list)")
        return copy.deepcopy(PRESETS[preset].settings)
    scale = find_method(method).scale
    radius = {"rho": round((scale or 1) * RHO, 6)}
    return drop_ignored(SMALL | radius | {"model": model, "method": method})
