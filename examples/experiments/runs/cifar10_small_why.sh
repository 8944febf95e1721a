#!/usr/bin/env bash
# Table 3 of examples/experiments/RESULTS.md: the loss of XSAM to SAM on 40 % wrong labels. At SAM's rho, XSAM with
# three rho_max, and a fixed direction turned from SAM's (alpha = 1) to one side and to the other. At XSAM's rho, SAM.
# Run it after cifar10_small.sh, with the same OUT. Three quarters of an hour on one core.
#     TFDS_DATA_DIR=... bash examples/experiments/runs/cifar10_small_why.sh [OUT]
set -euo pipefail
cd "$(dirname "$0")/../../.."
out=${1:-runs} python=${PYTHON:-.venv/bin/python}
"$python" -m examples.experiments.sweep --seeds 1 2 3 --out "$out/cifar10_small_why" \
  --each "--dataset cifar10 --model resnet8_half --train-size 4000 --validation-size 1000 --augmentation flip
          --epochs 20 --batch-size 64 --learning-rate 0.1 --weight-decay 1e-3 --label-noise 0.4 --rho 0.1" \
  "--method xsam --rho-max 0.1" "--method slerp_sam --method-args alpha 1.25" \
  "--method slerp_sam --method-args alpha 0.75" "--method xsam --rho-max 0.05" \
  "--method xsam --rho-max 0.2" "--method sam --rho 0.05"
runs=("$out/cifar10_small_why" "$out/cifar10_small_noise")
for over in rho rho_max alpha; do
  "$python" -m examples.experiments.compare "${runs[@]}" --over "$over" --out "$out/cifar10_small_why/over_$over"
done
