#!/usr/bin/env bash
# Pilots with seed 0 in examples/experiments/LOG.md, by which the augmentation of cifar10_small.sh was chosen, and
# the time of a step at whole and half resolution. A quarter of an hour on one core.
#     TFDS_DATA_DIR=... bash examples/experiments/runs/cifar10_small_pilots.sh [OUT]
set -euo pipefail
cd "$(dirname "$0")/../../.."
out=${1:-runs} python=${PYTHON:-.venv/bin/python}
"$python" -m examples.experiments.sweep --out "$out/cifar10_small_pilots" \
  --each "--dataset cifar10 --model resnet8_half --train-size 4000 --validation-size 1000
          --epochs 20 --batch-size 64 --weight-decay 1e-3" \
  "--method sgd --augmentation crop flip --learning-rate "{0.05,0.1} \
  "--method sgd --augmentation flip --learning-rate "{0.05,0.1} \
  "--method sam --rho 0.1 --augmentation crop flip --learning-rate 0.05" \
  "--method sam --augmentation flip --learning-rate 0.1 --rho "{0.1,0.2}
"$python" -m examples.experiments.sweep --out "$out/cifar10_small_steps" \
  --each "--dataset cifar10 --method sam --train-size 1500 --batch-size 125 --epochs 3 --evaluate-every 3" \
  "--model resnet8" "--model resnet8_half"
"$python" -m examples.experiments.compare "$out/cifar10_small_steps" --over model
