#!/usr/bin/env bash
# Presets of the XSAM paper on a TPU VM, or on each host of a pod slice, in bfloat16: ResNet-18 on CIFAR-10 (table 5), or
# others by PRESETS. Not run yet, since no TPU was at hand. docs/training.md says how to set up the machine.
#     DATA=FOLDER SEEDS="1 2 3" bash examples/experiments/runs/tpu_presets.sh [OUT]
#     PRESETS="cifar100-vit_ti-sam cifar100-vit_ti-xsam" BATCH=256 bash examples/experiments/runs/tpu_presets.sh [OUT]
# BATCH, 128 by default, must be a multiple of the number of chips (published: 125 for ResNet-18, 256 for ViT-Ti).
# On a pod slice, start it on every host with EXTRA=--distributed, and a folder OUT that the hosts share. EXTRA has
# further options of the trainer, as in EXTRA="--epochs 1" for a trial. The same command continues a stopped run.
set -euo pipefail
cd "$(dirname "$0")/../../.."
out=${1:-runs}/tpu python=${PYTHON:-.venv/bin/python}
for preset in ${PRESETS:-cifar10-resnet18-sgd cifar10-resnet18-sam cifar10-resnet18-xsam}; do
  for seed in ${SEEDS:-1 2 3}; do
    "$python" -m examples.image_classification --preset "$preset" --seed "$seed" --out "$out/$preset/seed$seed" \
      --batch-size "${BATCH:-128}" --bf16 ${DATA:+--data-dir "$DATA"} ${EXTRA:-}
  done
done
# `python -m examples.experiments.compare OUT/tpu` makes the table, on one host.
