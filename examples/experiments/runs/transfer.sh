#!/usr/bin/env bash
# Fine-tuning: a small vision transformer, trained on 10,000 images of CIFAR-10, learns digits from few images.
#     bash examples/experiments/runs/transfer.sh [OUT]
# SGD, AdamW, and SAM, XSAM and F-SAM over AdamW have three settings each, chosen by four other seeds, and eight seeds.
# AdamW from random weights is there for comparison. An interrupted script continues where it was.
set -euo pipefail
cd "$(dirname "$0")/../../.."
out=${1:-runs} images=${IMAGES:-100} python=${PYTHON:-.venv/bin/python}
weights=$out/vit_mini.safetensors

"$python" -m examples.image_classification --dataset cifar10 --model vit_mini --train-size 10000 --validation-size 2000 \
  --augmentation crop flip --method sgd --optimizer adamw --learning-rate 0.001 --weight-decay 0.05 --warmup-epochs 1 \
  --epochs 20 --evaluate-every 5 --checkpoint-every 5 --out "$out/vit_mini_on_cifar10"
[ -e "$weights" ] || "$python" -m examples.experiments.export "$out/vit_mini_on_cifar10" "$weights"

each="--dataset digits --image-size 32 --model vit_mini --train-size $images --validation-size 297 --batch-size 32
      --weight-decay 0.05 --epochs 30 --evaluate-every 30 --checkpoint-every 30"
tune() { "$python" -m examples.experiments.sweep --tune 100:104 --seeds 0:8 --out "$out/transfer" --each "$each" "$@"; }
fine="--init $weights" rate=${RATE:-0.001}
adamw="$fine --optimizer adamw --learning-rate $rate"
tune "--method sgd --optimizer adamw --learning-rate "{0.0003,0.001,0.003}
tune "$fine --method sgd --optimizer adamw --learning-rate "{0.0003,0.001,0.003}
tune "$fine --method sgd --optimizer sgd --learning-rate "{0.003,0.01,0.03}
tune "$adamw --method "{sam,friendly_sam}" --rho "{0.003,0.01,0.03}
tune "$adamw --method xsam --rho 0.003 --rho-max 0.006" "$adamw --method xsam --rho 0.01 --rho-max 0.02" \
  "$adamw --method xsam --rho 0.03 --rho-max 0.06"

"$python" -m examples.experiments.compare "$out/transfer"
"$python" -m examples.experiments.compare "$out/transfer/tuning"
