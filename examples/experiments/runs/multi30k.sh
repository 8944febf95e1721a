#!/usr/bin/env bash
# German to English on 5,000 sentences of Multi30k, with a small Transformer: AdamW, SAM, XSAM, F-SAM and Momentum-SAM, three seeds each.
#     DATA=... bash examples/experiments/runs/multi30k.sh [OUT] [METHODS]
# DATA, by default `data`, is a folder with train.de.gz, train.en.gz and so on. METHODS, by default all five, are separated by spaces.
# Each method has three settings, learning rates of AdamW and radii of the others at AdamW's best learning rate. They are chosen by the
# BLEU of another seed on the validation sentences. An interrupted script continues where it was.
set -euo pipefail
cd "$(dirname "$0")/../../.."
out=${1:-runs}/multi30k methods=${2:-sgd sam xsam friendly_sam momentum_sam} python=${PYTHON:-.venv/bin/python}
rate=${RATE:-0.002}
each="--data-dir ${DATA:-data} --model transformer_tiny --vocabulary 2000 --train-size 5000 --batch-tokens 2048 --dropout 0.1
      --epochs 8 --evaluate-every 8 --checkpoint-every 4 --warmup-steps 100 --schedule cosine"
sweep() { "$python" -m examples.experiments.sweep --program translation --tune 100 --seeds 0 1 2 --out "$out" --each "$each" "$@"; }

for method in $methods; do
  with="--method $method --learning-rate $rate"
  case $method in
    sgd) sweep "--method sgd --learning-rate "{0.001,0.002,0.004} ;;
    xsam) sweep "$with --rho 0.01 --rho-max 0.02" "$with --rho 0.03 --rho-max 0.06" "$with --rho 0.1 --rho-max 0.2" ;;
    momentum_sam) sweep "$with --rho "{0.05,0.15,0.5} ;;
    *) sweep "$with --rho "{0.01,0.03,0.1} ;;
  esac
done

"$python" -m examples.experiments.compare "$out"
"$python" -m examples.experiments.compare "$out/tuning"
