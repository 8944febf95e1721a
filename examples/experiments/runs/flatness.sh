#!/usr/bin/env bash
# Section 5 of examples/experiments/RESULTS.md: the flatness of the minima, on digits and, where the runs of
# cifar10_small.sh are in the same OUT, on CIFAR-10. Two minutes and a quarter of an hour on two cores.
#     TFDS_DATA_DIR=... bash examples/experiments/runs/flatness.sh [OUT]
set -euo pipefail
cd "$(dirname "$0")/../../.."
out=${1:-runs} python=${PYTHON:-.venv/bin/python}
"$python" -m examples.experiments.sweep --out "$out/flat_minima" --seeds 0 1 2 \
  --each "--evaluate-every 60 --checkpoint-every 60" \
  "--preset demo-sgd" "--preset demo-sam" "--preset demo-xsam"
"$python" -m examples.experiments.analyze "$out/flat_minima"
runs=()
for run in sgd-learning_rate0.2 sam-rho0.05 xsam-rho0.05-rho_max0.1; do
  if [ -d "$out/cifar10_small/$run" ]; then runs+=("$out/cifar10_small/$run"); fi
done
if [ ${#runs[@]} -gt 0 ]; then
  "$python" -m examples.experiments.analyze "${runs[@]}" --images 500 --directions 50 --probes 30 --steps 0 \
    --points 15 --out "$out/cifar10_small/analysis"
fi
