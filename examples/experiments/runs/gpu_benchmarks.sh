#!/usr/bin/env bash
# The benchmark tables on a GPU: step times, memory, and probes by chunk size (1, 3, 7, all alphas at once) of ResNet-18,
# ViT-Ti and an MLP. They check the default of `probe_batch_size`. Not run yet, since no GPU was at hand.
#     SIZE=large bash examples/experiments/runs/gpu_benchmarks.sh FILE.md
set -euo pipefail
cd "$(dirname "$0")/../../.."
"${PYTHON:-.venv/bin/python}" -m benchmarks.run --size "${SIZE:-large}" --rounds "${ROUNDS:-30}" \
  --only probe step memory --out "$1"
