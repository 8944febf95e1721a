#!/usr/bin/env bash
# 4,000 images of CIFAR-10 with right labels, as in cifar10_small.sh, with ten seeds a method.
#     TFDS_DATA_DIR=... bash examples/experiments/runs/cifar10_small_ten_seeds.sh [OUT]
# Each method has three settings, chosen by the mean accuracy of three other seeds on 1,000 validation images.
# Two and a half hours on one core. An interrupted script continues where it was.
set -euo pipefail
cd "$(dirname "$0")/../../.."
out=${1:-runs}/cifar10_small_ten_seeds python=${PYTHON:-.venv/bin/python}
each="--dataset cifar10 --model resnet8_half --train-size 4000 --validation-size 1000 --augmentation flip
      --epochs 20 --checkpoint-every 20 --batch-size 64 --learning-rate 0.1 --weight-decay 1e-3"
sweep() { "$python" -m examples.experiments.sweep --tune 100:103 --seeds 0:10 --out "$out" --each "$each" "$@"; }

sweep "--method sam --rho "{0.05,0.1,0.2}
sweep "--method xsam --rho 0.05 --rho-max 0.1" "--method xsam --rho 0.1 --rho-max 0.2" \
  "--method xsam --rho 0.2 --rho-max 0.4"
sweep "--method sgd --learning-rate "{0.1,0.2,0.4}
sweep "--method friendly_sam --rho "{0.05,0.1,0.2}

"$python" -m examples.experiments.compare "$out"
"$python" -m examples.experiments.compare "$out/tuning"
