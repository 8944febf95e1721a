#!/usr/bin/env bash
# Groups with a perturbation each (m-sharpness), on digits with 40 % wrong labels: SAM over rho with 1, 4, 16 and 64
# groups of a batch of 64. With 64 groups every image has its own. Eight seeds of each setting, without a choice:
# 34 minutes of training on one core.
#     bash examples/experiments/runs/digits_groups.sh [OUT]
set -euo pipefail
cd "$(dirname "$0")/../../.."
out=${1:-runs}/digits python=${PYTHON:-.venv/bin/python}
each="--dataset digits --model mlp --label-noise 0.4 --validation-size 297 --evaluate-every 60 --checkpoint-every 60"

"$python" -m examples.experiments.sweep --out "$out/groups" --seeds 0 1 2 3 4 5 6 7 --each "$each" \
  "--method sam --groups "{1,4,16}" --rho "{0.05,0.1,0.2,0.3,0.5,0.7} \
  "--method sam --groups 64 --rho "{0.05,0.1,0.2}
"$python" -m examples.experiments.compare "$out/groups" --over rho
