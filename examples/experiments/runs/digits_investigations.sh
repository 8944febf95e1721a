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
sweep() { name=$1; shift; "$python" -m examples.experiments.sweep --out "$out/$name" --seeds 0:32 --each "$each" "$@"; }
compare() { name=$1; shift; "$python" -m examples.experiments.compare "$out/$name" "$@"; }

sweep digits_parts_of_the_gradient "--method sgd" "--method "{sam,sam_full,sam_noise,sam_noise_eq8,sam_db}" --rho 0.3" \
  "--method friendly_sam --rho 0.3" "--method friendly_sam --rho 0.3 --method-args sigma cosine"
compare digits_parts_of_the_gradient --over sigma
sweep digits_larger_batch "--method sam --rho 0.3" \
  "--method sam_larger_batch --rho 0.3 --method-args batches "{2,4,8,15}
compare digits_larger_batch --over batches

# k steps that are together as long as the one, or each as long. rho_max is that which XSAM was given there.
for steps in "0.15 0.1 0.075" "0.3 0.3 0.3"; do
  read -r two three four <<< "$steps"
  name=digits_ascent_steps/$([ "$two" = 0.3 ] && echo each || echo together)
  sweep "$name" "--method sam --rho 0.3" "--method xsam --rho 0.3 --rho-max 0.3" \
    "--method "{sam,lsam,msam}" --ascent-steps 2 --rho $two" "--method xsam --rho-max 0.3 --ascent-steps 2 --rho $two" \
    "--method "{sam,lsam,msam}" --ascent-steps 3 --rho $three" "--method xsam --rho-max 0.3 --ascent-steps 3 --rho $three" \
    "--method "{sam,lsam,msam}" --ascent-steps 4 --rho $four" "--method xsam --rho-max 0.3 --ascent-steps 4 --rho $four"
  compare "$name" --over ascent_steps
done
