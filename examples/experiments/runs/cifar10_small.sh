#!/usr/bin/env bash
# Tables 1 and 2 of examples/experiments/RESULTS.md: 4,000 images of CIFAR-10, with right labels and with 40 % wrong ones.
#     TFDS_DATA_DIR=... bash examples/experiments/runs/cifar10_small.sh [OUT]
# Each method has four settings, chosen on 1,000 validation images with seed 0. The tables have test accuracy,
# calibration error, and accuracy on corrupted images. Half of the runs use one core, half the other, since both
# cores together are little faster on one run. That takes 71 minutes, and the evaluation 22 on one core.
# An interrupted script continues where it was.
set -euo pipefail
cd "$(dirname "$0")/../../.."
out=${1:-runs} python=${PYTHON:-.venv/bin/python}
each="--dataset cifar10 --model resnet8_half --train-size 4000 --validation-size 1000 --augmentation flip
      --epochs 20 --batch-size 64 --learning-rate 0.1 --weight-decay 1e-3"
sweep() { "${pin[@]}" "$python" -m examples.experiments.sweep --tune 0 --seeds 1 2 3 "$@"; }
clean() { sweep --out "$out/cifar10_small" --each "$each" "$@"; }
noisy() { sweep --out "$out/cifar10_small_noise" --each "$each --label-noise 0.4" "$@"; }
pin() { pin=(); if command -v taskset > /dev/null; then pin=(taskset -c "$1"); fi; }

{
  pin 0
  clean "--method sam --rho "{0.02,0.05,0.1,0.2}
  clean "--method sgd --learning-rate "{0.025,0.05,0.1,0.2}
  clean "--method asam --rho "{0.2,0.5,1,2}
  clean "--method friendly_sam --rho "{0.02,0.05,0.1,0.2}
  clean "--method xsam+asam --rho 0.2 --rho-max 0.04" "--method xsam+asam --rho 0.5 --rho-max 0.1" \
        "--method xsam+asam --rho 1 --rho-max 0.2" "--method xsam+asam --rho 2 --rho-max 0.4"
} & first=$!
{
  pin 1
  clean "--method xsam --rho 0.02 --rho-max 0.04" "--method xsam --rho 0.05 --rho-max 0.1" \
        "--method xsam --rho 0.1 --rho-max 0.2" "--method xsam --rho 0.2 --rho-max 0.4"
  noisy "--method sam --rho "{0.05,0.1,0.2,0.4}
  noisy "--method xsam --rho 0.05 --rho-max 0.1" "--method xsam --rho 0.1 --rho-max 0.2" \
        "--method xsam --rho 0.2 --rho-max 0.4" "--method xsam --rho 0.4 --rho-max 0.8"
  noisy "--method sgd --learning-rate "{0.025,0.05,0.1,0.2}
  noisy "--method friendly_sam --rho "{0.05,0.1,0.2,0.4}
} & second=$!
wait "$first"
wait "$second"

"$python" -m examples.experiments.evaluate "$out/cifar10_small" --corruptions --images 2000
"$python" -m examples.experiments.evaluate "$out/cifar10_small_noise"
for runs in cifar10_small cifar10_small_noise; do
  "$python" -m examples.experiments.compare "$out/$runs"
  "$python" -m examples.experiments.compare "$out/$runs/tuning"
done
