#!/usr/bin/env bash
# XSAM on ASAM's ascent with its search in ASAM's metric, on digits with 40 and 80 % wrong labels, 32 seeds each.
# Each method has twelve settings, rho_max twice rho, chosen by the mean validation accuracy of eight other seeds.
#     bash examples/experiments/runs/digits_asams_metric.sh [OUT]
# Half an hour on one core. An interrupted script continues where it was.
set -euo pipefail
cd "$(dirname "$0")/../../.."
out=${1:-runs} python=${PYTHON:-.venv/bin/python}
each="--dataset digits --train-size 1000 --validation-size 297
      --epochs 30 --checkpoint-every 30 --evaluate-every 30"
for noise in 0.4 0.8; do
  if [ $noise = 0.4 ]; then radii=(0.75 1.5 2 3 4 5); else radii=(0.2 0.4 0.6 0.8 1.2 1.6); fi
  settings=()
  for rate in 0.05 0.1; do
    for rho in "${radii[@]}"; do
      twice=$(awk "BEGIN { print $rho * 2 }") tenth=$(awk "BEGIN { print $rho / 10 }") fifth=$(awk "BEGIN { print $rho / 5 }")
      settings+=(
        "--method sam --learning-rate $rate --rho $tenth" # in other units than ASAM's
        "--method xsam --learning-rate $rate --rho $tenth --rho-max $fifth"
        "--method asam --learning-rate $rate --rho $rho"
        "--method xsam+asam_metric --learning-rate $rate --rho $rho --rho-max $twice"
      )
    done
  done
  "$python" -m examples.experiments.sweep --out "$out/digits_asams_metric_noise$noise" --tune 100:108 --seeds 0:32 \
    --each "$each --label-noise $noise" "${settings[@]}"
  "$python" -m examples.experiments.compare "$out/digits_asams_metric_noise$noise"
done

# At one radius of the ascent, over XSAM's radius.
"$python" -m examples.experiments.sweep --out "$out/digits_asams_metric_rho_max" --seeds 0:32 \
  --each "$each --label-noise 0.4 --learning-rate 0.1 --rho 2" \
  "--method asam" "--method xsam+asam_metric --rho-max "{2,2.5,3,4,6}
"$python" -m examples.experiments.compare "$out/digits_asams_metric_rho_max" --over rho_max --against asam
