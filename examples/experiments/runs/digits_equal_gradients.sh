#!/usr/bin/env bash
# Methods at equal numbers of gradients on digits with 40 % wrong labels, 32 seeds each: 12, 30, 60 and 120 gradients an
# image. SAM takes two a step, SAM in every fifth step and LookSAM 1.2, SGD and Momentum-SAM one. XSAM's probes, eight
# forward passes an epoch, are not counted.
#     bash examples/experiments/runs/digits_equal_gradients.sh [OUT] [GRADIENTS]
# Each method has nine settings at each number, chosen by the mean validation accuracy of eight other seeds.
# An hour for the first three numbers on one core. An interrupted script continues where it was.
set -euo pipefail
cd "$(dirname "$0")/../../.."
out=${1:-runs}/digits_equal_gradients python=${PYTHON:-.venv/bin/python}
each="--dataset digits --validation-size 297 --train-size 1000 --label-noise 0.4"
long() { echo "--epochs $1 --checkpoint-every $1 --evaluate-every $1"; }

for gradients in ${2:-60 30 12 120}; do
  one=$(long "$gradients") fifth=$(long $((gradients * 5 / 6))) two=$(long $((gradients / 2)))
  settings=("$one --method sgd --learning-rate "{0.003,0.006,0.009,0.0125,0.018,0.025,0.035,0.05,0.1})
  for rate in 0.025 0.05 0.1; do
    settings+=(
      "$two --learning-rate $rate --method sam --rho "{0.15,0.3,0.5}
      "$two --learning-rate $rate --method esam --rho "{0.15,0.3,0.5}
      "$one --learning-rate $rate --method momentum_sam --rho "{0.75,1.5,2.5}
      "$fifth --learning-rate $rate --method sam --sharp-every 5 --rho "{0.5,1,1.5}
      "$fifth --learning-rate $rate --method look_sam --rho "{0.15,0.3,0.5}
      "$two --learning-rate $rate --method xsam --search section --rho 0.15 --rho-max 0.3"
      "$two --learning-rate $rate --method xsam --search section --rho 0.3 --rho-max 0.6"
      "$two --learning-rate $rate --method xsam --search section --rho 0.5 --rho-max 1"
    )
  done
  "$python" -m examples.experiments.sweep --out "$out/$gradients" --tune 100:108 --seeds 0:32 --each "$each" "${settings[@]}"
done
"$python" -m examples.experiments.equal_gradients "$out"
