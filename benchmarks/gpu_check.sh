#!/usr/bin/env bash
# Everything worth doing on a machine with a GPU, most valuable first, in under twenty minutes:
#
#   benchmarks/gpu_check.sh [OUT]
#
# builds for the CPU and CUDA, runs the conformance suite on the GPU for the CUDA and the Triton kernels,
# compute-sanitizer on a reduced list of cases, then the decode benchmark at the Llama-2-7B shape and the op benchmark; writes results and a summary to OUT
# (default: benchmarks/results/gpu). Uses the `python` on PATH; needs torch with CUDA, nvcc, ninja, pybind11.
# Nothing here changes a setting of the GPU.
set -uo pipefail
cd "$(dirname "$0")/.."
out=$(realpath -m "${1:-benchmarks/results/gpu}")
mkdir -p "$out"
python=${PYTHON:-python}
export PYTHONPATH=$PWD:$PWD/benchmarks${PYTHONPATH:+:$PYTHONPATH} # the package as built in place, and gpu/
summary="$out/summary.md"
failed=0

step() { # step NAME SECONDS COMMAND...: runs it under a limit, logs it, notes how it ended
  local name=$1 limit=$2 begin=$SECONDS
  shift 2
  if timeout "$limit" "$@" >"$out/$name.log" 2>&1; then
    echo "| $name | passed | $((SECONDS - begin)) |" >>"$summary"
  else
    echo "| $name | **failed ($?)** | $((SECONDS - begin)) |" >>"$summary"
    tail -n 15 "$out/$name.log"
    failed=1
  fi
  echo "$name: $((SECONDS - begin)) s"
}

{
  echo "# GPU check"
  echo
  "$python" -c 'import torch; print(torch.cuda.get_device_name(), "· torch", torch.__version__)'
  nvidia-smi --query-gpu=driver_version --format=csv,noheader | head -1
  echo
  echo "| step | result | seconds |"
  echo "|---|---|---|"
} >"$summary" || { echo "no GPU that torch can use"; exit 1; }

step build 200 env STEERFAST_BUILD=cuda "$python" setup.py build_ext --inplace
step conformance-cuda 90 "$python" -m gpu.conformance --backend cuda
step conformance-triton 120 "$python" -m gpu.conformance --backend triton
step bench-ops-quick 60 "$python" benchmarks/bench_ops.py --quick --json
for tool in memcheck racecheck initcheck synccheck; do
  step "sanitizer-$tool" 60 compute-sanitizer --tool "$tool" --error-exitcode 9 \
    "$python" -m gpu.conformance --backend cuda --quick
done
step bench-decode-7b 240 "$python" benchmarks/bench_decode.py --shape llama-2-7b --mode graph --batch 1 32 256 \
  --vectors 8 --steps 100 --save
step bench-decode-7b-reads 120 "$python" benchmarks/bench_decode.py --shape llama-2-7b --mode graph --batch 32 \
  --vectors 8 --operator clamp --steps 100 --save
step bench-sweep-7b 180 "$python" benchmarks/bench_sweep.py --shape llama-2-7b --dtype bfloat16 --prompts 2 --cells 20 --save
step bench-decode-7b-eager 120 "$python" benchmarks/bench_decode.py --shape llama-2-7b --batch 1 32 --steps 60 --save
step bench-roofline 90 "$python" benchmarks/bench_roofline.py --save
step bench-scale 120 "$python" benchmarks/bench_scale.py --save
# Without their libraries, which such a machine may not be able to fetch: a hook, wrapped blocks, steerfast.
step bench-peers 120 "$python" benchmarks/bench_peers.py --shape llama-2-7b --save --environments
step bench-ops 150 "$python" benchmarks/bench_ops.py --save
# vLLM is not on every machine; a CUDA build of it brings the second runner and captured graphs.
if "$python" -c 'import vllm' 2>/dev/null; then
  step serving-gpu 600 "$python" -m pytest -q -m gpu tests/vllm
  step bench-serving 300 "$python" benchmarks/bench_serving.py --save
fi
cp -f benchmarks/results/{ops,decode,sweep,serving,roofline,scale,peers}.jsonl "$out/" 2>/dev/null
{
  echo
  echo "Last line of the quick op benchmark:"
  echo
  echo '```'
  tail -n 1 "$out/bench-ops-quick.log"
  echo '```'
} >>"$summary"
cat "$summary"
exit "$failed"
