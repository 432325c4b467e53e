#!/usr/bin/env bash
# One check of at most nine minutes on one GPU, without a network: bash benchmarks/gpu_check.sh [OUTPUT] [OPTIONS ...]
# What it does, and its options: benchmarks/gpu_check.py. Results are in OUTPUT (by default gpu-check) whenever it stops.
set -u
cd "$(dirname "$0")/.." || exit 2
output=${1:-gpu-check}
[ $# -gt 0 ] && shift
mkdir -p "$output" || exit 2
export PYTHONPATH="$PWD/src:$PWD${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
export HF_HUB_OFFLINE=1 HF_HUB_DISABLE_TELEMETRY=1 TOKENIZERS_PARALLELISM=false
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-4}"
set -o pipefail
timeout --signal=TERM --kill-after=10 540 "${PYTHON:-python3}" benchmarks/gpu_check.py --output "$output" "$@" 2>&1 |
    tee "$output/log.txt"
