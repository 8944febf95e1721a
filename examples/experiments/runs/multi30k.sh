#!/usr/bin/env bash
# German to English on Multi30k, with a small Transformer: AdamW, SAM, XSAM, F-SAM and Momentum-SAM, three seeds each.
#     DATA=... bash examples/experiments/runs/multi30k.sh [OUT]
# DATA, by default `data`, is a folder with train.de.gz, train.en.gz and so on. Each method has three settings, learning rates of AdamW and
# radii of the others, chosen by the BLEU of one other seed on the validation sentences.
# An interrupted script continues where it was.
set -euo pipefail
cd "$(dirname "$0")/../../.."
out=${1:-runs}/multi30k python=${PYTHON:-.venv/bin/python}
each="--data-dir ${DATA:-data} --model transformer_tiny --vocabulary 2000 --batch-tokens 4096 --dropout 0.1
      --epochs 8 --evaluate-every 8 --checkpoint-every 1 --warmup-steps 200 --schedule cosine"
sweep() { "$python" -m examples.experiments.sweep --program translation --tune 100 --seeds 0 1 2 --out "$out" --each "$each" "$@"; }

sweep "--method sgd --learning-rate "{0.001,0.002,0.004}
rate=0.002
sweep "--method sam --learning-rate $rate --rho "{0.05,0.1,0.2}
sweep "--method xsam --learning-rate $rate --rho 0.05 --rho-max 0.1" "--method xsam --learning-rate $rate --rho 0.1 --rho-max 0.2" \
  "--method xsam --learning-rate $rate --rho 0.2 --rho-max 0.4"
sweep "--method friendly_sam --learning-rate $rate --rho "{0.05,0.1,0.2}
sweep "--method momentum_sam --learning-rate $rate --rho "{0.25,0.5,1}

"$python" -m examples.experiments.compare "$out"
"$python" -m examples.experiments.compare "$out/tuning"
