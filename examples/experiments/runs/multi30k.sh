#!/usr/bin/env bash
# German to English on 1,000 sentences of Multi30k, 30 epochs, with a small Transformer, three seeds: AdamW, SAM, XSAM, F-SAM and
# Momentum-SAM. AdamW and SAM also on 5,000 sentences, 8 epochs.
#     DATA=... bash examples/experiments/runs/multi30k.sh [OUT] [METHODS] [METHODS_ON_MORE]
# DATA, by default `data`, is a folder with train.de.gz, train.en.gz and so on. METHODS are separated by spaces.
# Each method has three settings, learning rates of AdamW and radii of the others at AdamW's best learning rate. They are chosen by the
# BLEU of another seed on the validation sentences. Two hours on one core. An interrupted script continues where it was.
set -euo pipefail
cd "$(dirname "$0")/../../.."
out=${1:-runs} few=${2-sgd sam xsam friendly_sam momentum_sam} more=${3-sgd sam} python=${PYTHON:-.venv/bin/python}
each="--data-dir ${DATA:-data} --model transformer_tiny --dropout 0.1 --warmup-steps 100 --schedule cosine"
train() { # folder, shared options, settings
  "$python" -m examples.experiments.sweep --program translation --tune 100 --seeds 0 1 2 --out "$out/$1" --each "$each $2" "${@:3}"
}

of_few="--train-size 1000 --vocabulary 1000 --batch-tokens 1024 --epochs 30 --evaluate-every 30 --checkpoint-every 15 --beam 1"
rate=${RATE:-0.002}
for method in $few; do
  with="--method $method --learning-rate $rate"
  case $method in
    sgd) train multi30k_few "$of_few" "--method sgd --learning-rate "{0.001,0.002,0.004} ;;
    xsam) train multi30k_few "$of_few" "$with --rho 0.03 --rho-max 0.06" "$with --rho 0.1 --rho-max 0.2" "$with --rho 0.3 --rho-max 0.6" ;;
    momentum_sam) train multi30k_few "$of_few" "$with --rho "{0.15,0.5,1.5} ;;
    *) train multi30k_few "$of_few" "$with --rho "{0.03,0.1,0.3} ;;
  esac
done

of_more="--train-size 5000 --vocabulary 2000 --batch-tokens 2048 --epochs 8 --evaluate-every 8 --checkpoint-every 4"
for method in $more; do
  case $method in
    sgd) train multi30k "$of_more" "--method sgd --learning-rate "{0.001,0.002,0.004} ;;
    *) train multi30k "$of_more" "--method $method --learning-rate 0.002 --rho "{0.01,0.03,0.1} ;;
  esac
done

for folder in "$out"/multi30k*; do
  "$python" -m examples.experiments.compare "$folder"
  "$python" -m examples.experiments.compare "$folder/tuning"
done
