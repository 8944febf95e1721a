#!/usr/bin/env bash
# Table 5 of the XSAM paper, the row of CIFAR-10 and ResNet-18, on a GPU: all 50,000 images, the
# paper's settings, bfloat16. Not run yet, since no GPU was at hand (examples/experiments/RESULTS.md).
#     TFDS_DATA_DIR=... EPOCHS=200 SEEDS="1 2 3" bash examples/experiments/runs/gpu_cifar10_resnet18.sh [OUT]
# Stops after LIMIT seconds with everything saved (exit status 124). The same command continues. EXTRA has
# further options of the trainer, as in EXTRA="--dataset digits --model mlp" for a trial.
set -euo pipefail
cd "$(dirname "$0")/../../.."
out=${1:-runs}/gpu_cifar10_resnet18 python=${PYTHON:-.venv/bin/python}
timeout --signal TERM "${LIMIT:-520}" "$python" -m examples.experiments.sweep --out "$out" \
  --seeds ${SEEDS:-1 2 3} --each "--bf16 --epochs ${EPOCHS:-200} ${EXTRA:-}" \
  "--preset cifar10-resnet18-sgd" "--preset cifar10-resnet18-sam" "--preset cifar10-resnet18-xsam"
"$python" -m examples.experiments.compare "$out"
