#!/usr/bin/env bash
# Table 3 of examples/RESULTS.md: why SAM is ahead of XSAM on 40 % wrong labels. At SAM's rho, XSAM
# with smaller rho_max, and a direction that is fixed and turned a little from SAM's (alpha = 1), to
# one side and to the other. After cifar10_small.sh, to the same OUT; twenty minutes on one core.
#     TFDS_DATA_DIR=... bash examples/runs/cifar10_small_why.sh [OUT]
set -euo pipefail
cd "$(dirname "$0")/../.."
out=${1:-runs} python=${PYTHON:-.venv/bin/python}
"$python" -m examples.sweep --seeds 1 2 3 --out "$out/cifar10_small_why" \
  --each "--dataset cifar10 --model resnet8_half --train-size 4000 --validation-size 1000 --augmentation flip
          --epochs 20 --batch-size 64 --learning-rate 0.1 --weight-decay 1e-3 --label-noise 0.4 --rho 0.1" \
  "--method xsam --rho-max 0.1" "--method slerp_sam --method-args alpha 1.25" \
  "--method slerp_sam --method-args alpha 0.75" "--method xsam --rho-max 0.05"
"$python" -m examples.compare "$out/cifar10_small_why" "$out/cifar10_small_noise" --over rho_max
"$python" -m examples.compare "$out/cifar10_small_why" "$out/cifar10_small_noise" --over alpha
