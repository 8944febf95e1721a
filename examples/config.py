"""What the demo on noisy digits trains: its configuration, and the command line that sets it."""

import argparse
import contextlib
import difflib
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from examples.experiments.arguments import Parser
from examples.image_classification.methods import FAMILY

RHOS = (0.1, 0.2, 0.3, 0.5, 0.7)


@dataclass(frozen=True)
class Config:
    """What is trained; all else is as for `digits` in examples/image_classification/presets."""

    methods: tuple[str, ...] = ("sgd", "sam", "xsam")
    rhos: tuple[float, ...] | None = None  # None is RHOS, at the scale of the method
    rho_max: float | None = None  # the radius of XSAM's probes; None is twice rho
    steps: int = 1  # ascent steps per update, each of length rho
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)  # of the wrong labels, the weights and the batches
    epochs: int = 60
    noise: float = 0.4  # share of wrong training labels
    out: Path = Path("runs/noisy_digits")


class Setting(NamedTuple):
    """One point of the sweep; SGD has no radii."""

    method: str
    rho: float | None = None
    rho_max: float | None = None

    def __str__(self) -> str:
        radii = "" if self.rho is None else f" rho {self.rho:g}"
        return self.method.upper() + radii + (f", rho_max {self.rho_max:g}" if self.rho_max else "")


def settings(method: str, config: Config) -> list[Setting]:
    """Returns the points of the sweep over the radii of one method."""
    scale = FAMILY[method].scale
    if scale is None:
        return [Setting(method)]
    rhos = config.rhos or [round(scale * rho, 6) for rho in RHOS]
    if method == "xsam":
        return [Setting(method, rho, config.rho_max or 2 * rho) for rho in rhos]
    return [Setting(method, rho) for rho in rhos]


def read_config(argv: list[str] | None, description: str) -> Config:
    """Reads the command line; what is wrong with it is one line on stderr, and exit code 2."""
    default = Config()
    radius = _number(float, lambda x: 0 < x < math.inf, "a number above 0")
    count = _number(int, lambda n: n >= 1, "an integer of at least 1")
    seed = _number(int, lambda n: 0 <= n < 2**31, "an integer from 0 to 2**31 - 1")
    several: dict[str, Any] = {"nargs": "+", "action": "extend"}
    rhos = " ".join(map(str, RHOS))
    epilog = f"The methods: {', '.join(FAMILY)}."
    wrapped = argparse.HelpFormatter
    parser = Parser(description=description, epilog=epilog, formatter_class=wrapped)
    add = parser.add_argument
    methods = f"methods, or all [{' '.join(default.methods)}]"
    add("--method", metavar="NAME", type=_method, help=methods, **several)
    rho = f"radii, taken as they are [{rhos}, times what suits the method]"
    add("--rho", metavar="R", type=radius, help=rho, **several)
    add("--rho-max", metavar="R", type=radius, help="radius of XSAM's probes [2 rho]")
    steps = "ascent steps of length rho, where the method can take several [1]"
    add("--steps", metavar="K", type=count, default=default.steps, help=steps)
    add("--seed", metavar="N", type=seed, help="run these seeds instead of 0 to 4", **several)
    add("--seeds", metavar="N", type=count, help="run so many seeds, from 0 [5]")
    add("--epochs", metavar="N", type=count, default=default.epochs, help="epochs [%(default)s]")
    add("--out", metavar="DIR", type=Path, default=default.out, help="folder [%(default)s]")
    args = parser.parse_args(argv)

    given = args.method or default.methods
    given = FAMILY if "all" in given else given
    if args.rho and all(FAMILY[name].scale is None for name in given):
        parser.error("argument --rho: SGD has no rho; add --method sam or --method xsam")
    if args.rho_max and "xsam" not in given:
        parser.error("argument --rho-max: only XSAM has one; add --method xsam")
    if args.steps > 1 and not any(FAMILY[name].steps for name in given):
        takers = ", ".join(name for name, method in FAMILY.items() if method.steps)
        parser.error(f"argument --steps: only these take several: {takers}")
    if args.seed and args.seeds:
        parser.error("argument --seed: give either --seed or --seeds")
    try:
        args.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        parser.error(f"argument --out: {error}")
    return Config(
        methods=tuple(name for name in FAMILY if name in given),
        rhos=tuple(sorted(set(args.rho))) if args.rho else None,
        rho_max=args.rho_max,
        steps=args.steps,
        seeds=tuple(dict.fromkeys(args.seed or range(args.seeds or len(default.seeds)))),
        epochs=args.epochs,
        out=args.out,
    )


def _number(kind: type, valid: Callable[[Any], bool], description: str) -> Callable[[str], Any]:
    def parse(text: str) -> Any:
        with contextlib.suppress(ValueError):
            if valid(value := kind(text)):
                return value
        raise argparse.ArgumentTypeError(f"must be {description}, not {text!r}")

    return parse


def _method(text: str) -> str:
    names = [*FAMILY, "all"]
    if text not in names:
        near = difflib.get_close_matches(text.lower(), names, n=1, cutoff=0.6)
        hint = f"did you mean {near[0]!r}?" if near else f"choose from {', '.join(names)}"
        raise argparse.ArgumentTypeError(f"unknown method {text!r}; {hint}")
    return text
