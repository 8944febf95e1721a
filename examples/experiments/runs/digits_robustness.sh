#!/usr/bin/env bash
# Figures 1 to 5 of examples/experiments/RESULTS.md: the sensitivity of SAM and XSAM to their settings, on digits
# with 40 % wrong labels, in the order of the XSAM paper: over rho with one rho_max (its figure 3b),
# over the steps between probes (4), over rho_max (14a), over ascent steps (table 4), and by the
# length of XSAM's update (17). Five seeds of each setting, without a choice: 22 minutes on one core.
#     bash examples/experiments/runs/digits_robustness.sh [OUT]
set -euo pipefail
cd "$(dirname "$0")/../../.."
out=${1:-runs}/digits python=${PYTHON:-.venv/bin/python}
each="--dataset digits --model mlp --label-noise 0.4 --evaluate-every 60 --checkpoint-every 60"
sweep() { name=$1; shift; "$python" -m examples.experiments.sweep --out "$out/$name" --seeds 0 1 2 3 4 --each "$each" "$@"; }
sam="--method sam --rho 0.3" xsam="--method xsam --rho 0.3"

sweep rho "--method sgd" "--method sam --rho "{0.05,0.1,0.2,0.3,0.5,0.7} \
      "--method xsam --rho-max 0.6 --rho "{0.05,0.1,0.2,0.3,0.5,0.7}
# Fifteen steps are an epoch, 900 all of training.
sweep probe_every "$sam" "$xsam --rho-max 0.6 --probe-every "{1,5,15,75,300,900}
sweep rho_max "$sam" "$xsam --rho-max "{0.3,0.45,0.6,0.75,0.9}
# The radius of one step divided by their number; sums of one gradient, where k is 1.
for steps in "--ascent-steps 1 --rho 0.3" "--ascent-steps 2 --rho 0.15" "--ascent-steps 4 --rho 0.075"; do
  sum="--method-args at_least 1"
  sweep ascent_steps "--method sam $steps" "--method xsam $steps --rho-max 0.6" \
        "--method lsam $steps $sum" "--method lsam+ $steps $sum" \
        "--method msam $steps $sum" "--method msam+ $steps $sum"
done
sweep scale "$sam" "$xsam --rho-max 0.6 --method-args scale "{first,last,mean,max,slope,slope_max}

for over in rho probe_every rho_max ascent_steps scale; do
  "$python" -m examples.experiments.compare "$out/$over" --over "$over"
done
