#!/usr/bin/env bash
# Methods at equal numbers of gradients on 4,000 images of CIFAR-10: 40 epochs with one gradient a step, 33 with SAM in
# every fifth step, 20 with two gradients.
#     TFDS_DATA_DIR=... bash examples/experiments/runs/cifar10_small_equal_gradients.sh [OUT]
# Each method has four settings, chosen on 1,000 validation images with seed 0, but SAM and XSAM, which have those of
# cifar10_small.sh. An hour and a half on one core. An interrupted script continues where it was.
set -euo pipefail
cd "$(dirname "$0")/../../.."
out=${1:-runs}/cifar10_small_equal_gradients python=${PYTHON:-.venv/bin/python}
each="--dataset cifar10 --model resnet8_half --train-size 4000 --validation-size 1000 --augmentation flip
      --batch-size 64 --learning-rate 0.1 --weight-decay 1e-3"
sweep() { "$python" -m examples.experiments.sweep --tune 0 --seeds 1 2 3 4 --out "$out/40" --each "$each" "$@"; }

sweep "--method momentum_sam --epochs 40 --rho "{0.1,0.2,0.4,0.8}
sweep "--method sgd --epochs 40 --learning-rate "{0.05,0.1,0.2,0.4}
sweep "--method sam --epochs 20 --rho 0.05"
sweep "--method sam --sharp-every 5 --epochs 33 --rho "{0.05,0.1,0.2,0.4}
sweep "--method async_sam --epochs 40 --rho "{0.02,0.05,0.1,0.2}
sweep "--method xsam --epochs 20 --rho 0.05 --rho-max 0.1"
sweep "--method look_sam --epochs 33 --rho "{0.02,0.05,0.1,0.2}

"$python" -m examples.experiments.equal_gradients "$out"
"$python" -m examples.experiments.compare "$out/40/tuning"
