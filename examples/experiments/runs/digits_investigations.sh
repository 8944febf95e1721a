#!/usr/bin/env bash
# Two questions of the papers on digits with 40 % wrong labels, 32 seeds each, at the learning rate and radius that
# digits_wrong_labels.sh chose for SAM: which part of the gradient the ascent needs (F-SAM, figures 1 and 2), and what
# more ascent steps do (XSAM, tables 4 and 12 to 14).
#     bash examples/experiments/runs/digits_investigations.sh [OUT]
# Half an hour on one core. An interrupted script continues where it was.
set -euo pipefail
cd "$(dirname "$0")/../../.."
out=${1:-runs} python=${PYTHON:-.venv/bin/python}
each="--dataset digits --validation-size 297 --label-noise 0.4 --learning-rate 0.1
      --epochs 30 --checkpoint-every 30 --evaluate-every 30"
sweep() { "$python" -m examples.experiments.sweep --seeds 0:32 --each "$each" "$@"; }

sweep --out "$out/digits_parts_of_the_gradient" "--method sgd" "--method friendly_sam --rho 0.3" \
  "--method friendly_sam --rho 0.3 --method-args sigma cosine" \
  "--method "{sam,sam_full,sam_noise,sam_noise_eq8,sam_db}" --rho 0.3" \
  "--method sam_larger_batch --rho 0.3 --method-args batches "{2,4,8,15}

# Each step as long as the one, or all together.
sweep --out "$out/digits_more_steps" \
  "--method sam --rho 0.3" "--method xsam --rho 0.3 --rho-max 0.6" \
  "--method "{sam,lsam,msam}" --ascent-steps 2 --rho "{0.15,0.3} \
  "--method "{sam,lsam,msam}" --ascent-steps 3 --rho "{0.1,0.3} \
  "--method "{sam,lsam,msam}" --ascent-steps 4 --rho "{0.075,0.3} \
  "--method xsam --rho-max 0.6 --ascent-steps 2 --rho "{0.15,0.3} \
  "--method xsam --rho-max 0.6 --ascent-steps 3 --rho "{0.1,0.3} \
  "--method xsam --rho-max 0.6 --ascent-steps 4 --rho "{0.075,0.3}

"$python" -m examples.experiments.compare "$out/digits_parts_of_the_gradient"
"$python" -m examples.experiments.compare "$out/digits_more_steps" --over ascent_steps
