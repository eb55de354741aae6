#!/usr/bin/env bash
# What only a GPU can show, in one call from a clean clone; nothing is fetched but the wheels:
#   bash bench/gpu.sh [--out DIR] [--steps 48]        DEVICE=cpu bash bench/gpu.sh   a dry run without a GPU, much smaller
set -euo pipefail
cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."
export OMP_WAIT_POLICY=PASSIVE HF_HUB_OFFLINE=1 DEVICE=${DEVICE:-cuda}
bash yichuidingyin.sh --prepare
exec "${YCDY_ENV:-.venv}/bin/python" -P bench/gpu.py "$@"
