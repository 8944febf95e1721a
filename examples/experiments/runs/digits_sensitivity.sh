#!/usr/bin/env bash
# How SAM and XSAM depend on their settings, on digits with 40 % wrong labels, 32 seeds each, at the learning rate that
# digits_wrong_labels.sh chose for SAM, rho_max 0.3 unless it varies: over rho (XSAM, figure 3b; F-SAM, figure 3), over
# the batch size (F-SAM, figure 4), over the steps between probes (XSAM, figure 4), over rho_max (14a), and by the length
# of the update (17).
#     bash examples/experiments/runs/digits_sensitivity.sh [OUT]
# Half an hour on one core. An interrupted script continues where it was.
set -euo pipefail
cd "$(dirname "$0")/../../.."
out=${1:-runs}/digits_over python=${PYTHON:-.venv/bin/python}
each="--dataset digits --train-size 1000 --validation-size 297 --label-noise 0.4 --learning-rate 0.1
      --epochs 30 --checkpoint-every 30 --evaluate-every 30"
sweep() { name=$1; shift; "$python" -m examples.experiments.sweep --out "$out/$name" --seeds 0:32 --each "$each" "$@"; }
sam="--method sam --rho 0.3" xsam="--method xsam --rho 0.3" radii=({0.05,0.1,0.2,0.3,0.4,0.5,0.7})

# alpha 1.25 is a fixed direction beyond SAM's, which is alpha 1.
sweep rho "--method sgd" "${radii[@]/#/--method sam --rho }" "${radii[@]/#/--method xsam --rho-max 0.3 --rho }" \
  "${radii[@]/#/--method friendly_sam --rho }" \
  "${radii[@]/#/--method slerp_sam --method-args alpha 1.25 --rho }"
sizes=({32,64,128,256,500})
sweep batch_size "${sizes[@]/#/--method sgd --batch-size }" "${sizes[@]/#/$sam --batch-size }" \
  "${sizes[@]/#/$xsam --rho-max 0.3 --batch-size }" "${sizes[@]/#/--method friendly_sam --rho 0.3 --batch-size }"
# Fifteen steps are an epoch, 450 all of training.
sweep probe_every "$sam" "$xsam --rho-max 0.3 --probe-every "{1,5,15,75,150,450}
sweep rho_max "$sam" "$xsam --rho-max "{0.3,0.45,0.6,0.75,0.9}
sweep scale "$sam" "$xsam --rho-max 0.3 --method-args scale "{first,last,mean,max,slope,slope_max}

for over in rho batch_size probe_every rho_max scale; do
  "$python" -m examples.experiments.compare "$out/$over" --over "$over"
done
