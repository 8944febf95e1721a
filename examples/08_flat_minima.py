"""Are the minima of SAM and XSAM flatter than those of SGD? Spectra and landscapes.

    make flat-minima       (or: python -m examples.05_flat_minima [--further RUN_FOLDER])

Trains the networks of the demo on noisy digits, one setting a method, three seeds, unless they are
there already; then measures them as `python -m examples.experiments.analyze` does, whose
options it takes too. Takes four minutes on two cores. `--further RUN_FOLDER` adds table and figures
of other runs.
"""

import argparse
import sys
from pathlib import Path

from examples.experiments import analyze
from examples.image_classification.config import Config
from examples.image_classification.devices import cache_compilations
from examples.image_classification.presets import DEMO
from examples.image_classification.train import train


def parse_arguments(argv: list[str] | None = None) -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(description="are the minima of SAM and XSAM flatter?")
    parser.add_argument("--out", type=Path, default=Path("runs/flat_minima"), help="folder")
    parser.add_argument("--seeds", type=int, default=3, help="how many")
    parser.add_argument("--epochs", type=int, default=60, help="of training")
    parser.add_argument("--further", type=Path, nargs="+", default=[], help="folders of runs")
    return parser.parse_known_args(argv)


def main(argv: list[str] | None = None) -> int:
    args, options = parse_arguments(argv)
    cache_compilations()
    for name, preset in DEMO.items():
        for seed in range(args.seeds):
            settings = preset.settings | {"seed": seed, "epochs": args.epochs}
            settings |= {"evaluate_every": args.epochs, "checkpoint_every": args.epochs}
            train(Config(**settings, out=args.out / name / f"seed{seed}"), show=False)
        print(f"{name} is trained", file=sys.stderr, flush=True)
    return max(analyze.main([str(folder), *options]) for folder in (args.out, *args.further))


if __name__ == "__main__":
    sys.exit(main())
