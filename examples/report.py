"""What the demo on noisy digits found, in words: a choice on validation, and tables."""

import itertools

import numpy as np

from examples.config import Config, Setting
from examples.experiments.seeds import difference, spread
from examples.image_classification.presets import DIGITS

Results = dict[Setting, dict[str, np.ndarray]]  # what training one model returns, over seeds
COLLAPSED = 20  # percent; guessing gives 10
FEW = 3  # methods, of which every pair is compared


def choose(results: Results) -> dict[str, Setting]:
    """Returns the setting of each method with the best mean accuracy on the validation images."""
    methods = dict.fromkeys(setting.method for setting in results)
    ranking = sorted(results, key=lambda setting: -results[setting]["validation"].mean())
    return {method: next(s for s in ranking if s.method == method) for method in methods}


def report(results: Results, chosen: dict[str, Setting], config: Config) -> None:
    """Prints the sweep by validation accuracy, and what it chose by test accuracy and cost."""
    seeds = len(config.seeds)
    of_seeds = f"mean ± std of {seeds} seeds" if seeds > 1 else f"seed {config.seeds[0]}"
    width = max(len(str(setting)) for setting in results)
    print(f"\nValidation accuracy in %, {of_seeds} (* the best of its method)\n")
    for setting, runs in results.items():
        star = " *" if setting in chosen.values() else ""
        print(f"  {setting!s:{width}} {spread(runs['validation'])}{star}")
    print(f"\nTest accuracy in % at the rho chosen on validation, {of_seeds};")
    print("gradients per step, as counted while training\n")
    for setting in chosen.values():
        runs = results[setting]
        print(f"  {setting!s:{width}} {spread(runs['test'])}  {runs['gradients'].mean():4.2f}")
    if "xsam" in chosen:
        probe = f"{DIGITS['num_alphas']} forward passes once an epoch"
        steps = DIGITS["train_size"] // DIGITS["batch_size"]
        print(f"\n  XSAM's probes come on top: {probe}, {steps} steps")
    print(end="\n" if len(chosen) > 1 else "")
    print_comparisons({name: results[setting]["test"] for name, setting in chosen.items()})
    for setting, runs in results.items():
        if collapsed := int((runs["validation"] < COLLAPSED).sum()):
            print(f"  note: {setting}: {collapsed} of {seeds} runs collapsed (below {COLLAPSED} %)")
    for setting in chosen.values():
        rhos = [s.rho for s in results if s.method == setting.method]
        if len(rhos) > 1 and setting.rho in (rhos[0], rhos[-1]):
            print(f"  note: {setting} is at the edge of the sweep; a better one may lie beyond")


def print_comparisons(tests: dict[str, np.ndarray]) -> None:
    """Prints the difference of every pair of a few methods, or of many to SAM."""
    pairs = list(itertools.combinations(tests, 2))
    if len(tests) > FEW:
        base = "sam" if "sam" in tests else next(iter(tests))
        pairs = [(base, name) for name in tests if name != base]
    for one, other in pairs:
        print(f"  {other.upper()} - {one.upper()}: {difference(tests[other], tests[one])}")
    if len(tests) > FEW:
        print("  of 20 equal methods one differs by two standard errors by chance")
