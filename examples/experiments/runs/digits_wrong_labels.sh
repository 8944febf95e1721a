#!/usr/bin/env bash
# Digits with wrong labels and with few images: SGD, SAM and others, 32 seeds each (F-SAM's table 6 in small).
#     bash examples/experiments/runs/digits_wrong_labels.sh [OUT] [RATES] [RATES_OF_FEW]
# Each method has twelve settings, of learning rate and radius, chosen by the mean validation accuracy of eight other
# seeds. About two hours on one core. An interrupted script continues where it was.
set -euo pipefail
cd "$(dirname "$0")/../../.."
out=${1:-runs} rates=${2-0 0.2 0.4 0.6 0.8} few=${3-0 0.4} python=${PYTHON:-.venv/bin/python}
each="--dataset digits --validation-size 297"
sweep() { "$python" -m examples.experiments.sweep --tune 100:108 --seeds 0:32 "$@"; }

settings=("--method sgd --learning-rate "{0.003,0.006,0.0125,0.018,0.025,0.035,0.05,0.07,0.1,0.14,0.2,0.4})
for rate in 0.025 0.05 0.1; do
  settings+=(
    "--method slerp_sam --method-args alpha 0 --learning-rate $rate --rho "{0.075,0.15,0.3,0.5}
    "--method "{sam,friendly_sam,gsam}" --learning-rate $rate --rho "{0.075,0.15,0.3,0.5}
    "--method asam --learning-rate $rate --rho "{0.75,1.5,3,5}
    "--method momentum_sam --learning-rate $rate --rho "{0.375,0.75,1.5,2.5}
  )
  while read -r rho rho_max of_asam; do
    settings+=("--method xsam --learning-rate $rate --rho $rho --rho-max $rho_max")
    settings+=("--method xsam+asam --learning-rate $rate --rho $of_asam --rho-max $rho_max")
  done <<< $'0.075 0.15 0.75\n0.15 0.3 1.5\n0.3 0.6 3\n0.5 1 5'  # ASAM's rho is in other units
done

# Few images have as many steps.
train() { # images, epochs, share of wrong labels
  local long="--epochs $2 --checkpoint-every $2 --evaluate-every $2"
  sweep --out "$out/digits_$1_images_noise$3" --each "$each --train-size $1 --label-noise $3 $long" "${settings[@]}"
}
for rate in $rates; do train 1000 30 "$rate"; done
for rate in $few; do train 200 150 "$rate"; done
for runs in "$out"/digits_*_images_noise*; do "$python" -m examples.experiments.compare "$runs"; done
