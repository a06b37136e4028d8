#!/usr/bin/env bash
# Everything worth doing on a machine with a GPU, most valuable first, within a deadline:
#
#   benchmarks/gpu_check.sh DEADLINE OUT [--only STAGE...] [--dry-run]
#
# DEADLINE: seconds from now. OUT: a folder; two files are written there, and anew after every stage: gpu.tgz (logs and
# results, for `report.py --import OUT`) and summary.md. --dry-run: every stage on the CPU, at sizes that say nothing.
# Needs a python3 (or what PYTHON names) with torch. No network, no model file, nothing installed, no setting of the GPU changed.
# gpu/check.py does the work.
set -euo pipefail
[ $# -ge 2 ] || { sed -n '2,9s/^# \{0,1\}//p' "$0"; exit 2; }
deadline=$1
out=$(realpath -m "$2")
shift 2
cd "$(dirname "$0")/.."
export PYTHONPATH=$PWD:$PWD/benchmarks${PYTHONPATH:+:$PYTHONPATH} # the package as it lies here, and gpu/
export PYTHONUNBUFFERED=1                                         # what a stage has said is there when it is killed
exec "${PYTHON:-python3}" -m gpu.check "$deadline" "$out" "$@"
