#!/usr/bin/env bash
# Everything a bare CUDA machine can tell about this project, in one command and nine minutes; nothing is downloaded.
#
#   bench/gpu.sh              build, test and measure; results in $OUT, or bench/results/<device>/
#   bench/gpu.sh --dry-run    print the stages and their time limits
#   bench/gpu.sh --rehearse   run every stage small, on any machine: proves the script, measures nothing
#
# INVERT_FAST_SITE=FOLDER takes the package from there instead of building it, which takes a minute or two.
# Needs Python >= 3.11 ($PYTHON, default python3) with torch, transformers, numpy, tqdm, pytest, pytest-benchmark and
# hypothesis. The extensions are built if setuptools, pybind11, cmake and a compiler are there, and left out if not.
# Each stage has a time limit, the most valuable come first, and what is measured is kept at once: a stage that runs
# out of time costs only the rest of itself. BUDGET (seconds, default 530) bounds the whole.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

mode=run
case "${1:-}" in
    "") ;;
    --dry-run) mode=dry ;;
    --rehearse) mode=rehearse ;;
    *) echo "gpu.sh: '$1' is unknown, expected nothing, --dry-run or --rehearse" >&2; exit 2 ;;
esac

python=${PYTHON:-python3}
budget=${BUDGET:-530}
[ $mode = rehearse ] && budget=${BUDGET:-1500}  # a busy machine with few cores may take long over the same
work=build/gpu
site=${INVERT_FAST_SITE:-$PWD/$work/site}
started=$SECONDS

if [ $mode != dry ]; then
    if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
        echo "gpu.sh: '$python' is no Python >= 3.11: set PYTHON" >&2; exit 2
    fi
    if ! missing=$("$python" -c '
import importlib.util as u
print(*[n for n in "torch transformers numpy tqdm safetensors pytest pytest_benchmark hypothesis".split() if not u.find_spec(n)])'); then
        echo "gpu.sh: '$python' does not run" >&2; exit 2
    fi
    if [ -n "$missing" ]; then
        echo "gpu.sh: $python has no $missing: set PYTHON to one that has (nothing is downloaded here)" >&2; exit 2
    fi
fi
device=$("$python" -c '
import torch
print(torch.cuda.get_device_name() if torch.cuda.is_available() else "")' 2>/dev/null)
if [ $mode = run ] && [ -z "$device" ]; then
    echo "gpu.sh: no CUDA GPU that this PyTorch can use is in sight, expected one." >&2
    echo "gpu.sh: --rehearse runs every stage small on the CPU, --dry-run prints the stages." >&2
    exit 2
fi
name=$(echo "${device:-cpu-rehearsal}" | tr 'A-Z ' 'a-z-' | tr -cd 'a-z0-9-')
out=${OUT:-bench/results/$name}
[ $mode = rehearse ] && out=${OUT:-$work/rehearsal}

if [ $mode != dry ]; then
    mkdir -p "$out" "$work"
    out=$(cd "$out" && pwd)
    rows=$out/rows.jsonl
    : > "$rows"
    : > "$out/stages.txt"
fi

# stage NAME SECONDS COMMAND…: runs it within its limit and within what is left of the budget; the log goes to $out.
stage() {
    local name=$1 limit=$2 begun=$SECONDS status left
    shift 2
    if [ $mode = dry ]; then
        printf '%-14s %4d s  %s\n' "$name" "$limit" "$*"
        return
    fi
    left=$((budget - (SECONDS - started)))
    if [ "$left" -lt 5 ]; then
        echo "$name: left out, the budget of $budget s is spent" | tee -a "$out/stages.txt"
        return
    fi
    [ "$left" -lt "$limit" ] && limit=$left
    echo "== $name (at most $limit s)"
    timeout --kill-after=5 "$limit" "$@" > "$out/$name.log" 2>&1
    status=$?
    case $status in
        0) echo "$name: done in $((SECONDS - begun)) s" ;;
        124 | 137) echo "$name: stopped at its limit of $limit s, what it had measured is kept" ;;
        *) echo "$name: FAILED with status $status after $((SECONDS - begun)) s, see $name.log" ;;
    esac | tee -a "$out/stages.txt"
    tail -n 3 "$out/$name.log" | sed 's/^/   /'
    return $status
}

# Without isolation and without an index: what is not installed here cannot be had. Failing that, a folder of links
# that has the package without its extensions.
build=("$python" -m pip install --no-build-isolation --no-deps --no-index -q --target "$site" .)
link_sources() {
    [ $mode = dry ] && return
    echo "the build failed: going on without the C++ and CUDA extensions" | tee -a "$out/stages.txt"
    rm -rf "$site"
    mkdir -p "$site/invert_fast"
    ln -s "$PWD"/invert_fast/* "$site/invert_fast/"
    rm -f "$site"/invert_fast/*.so "$site"/invert_fast/kernels
    ln -s "$PWD/kernels" "$site/invert_fast/kernels"
}
[ $mode = dry ] || [ -n "${INVERT_FAST_SITE:-}" ] || rm -rf "$site"

# -P: the working folder must not shadow the build, nor make kernels/ importable.
tests=("$python" -P -m pytest -q -p no:cacheprovider)
bench=("${tests[@]}" --benchmark-only --benchmark-disable-gc)
# compiling a kernel for each shape takes far longer than running it, and side by side it does not
[ $mode = run ] && "$python" -c 'import xdist' 2>/dev/null && tests+=(-n 8 --dist load --max-worker-restart 0)
export PYTHONPATH=$site INVERT_FAST_BENCH_ROWS=${rows:-} TQDM_DISABLE=1 HF_HUB_OFFLINE=1 INVERT_FAST_CACHE=$PWD/$work/cache
export TRITON_CACHE_DIR=$PWD/$work/triton

if [ $mode = rehearse ]; then
    export INVERT_FAST_REHEARSE=1 INVERT_FAST_CUDA=off
    [ -n "${INVERT_FAST_SITE:-}" ] || stage build 300 "${build[@]}" || link_sources
    stage test-gpu 200 "${tests[@]}" tests/ops/test_cuda.py tests/model/test_cuda_graph.py \
        -k "noticed or stops or stays or refused or default"
    stage captured 200 "${bench[@]}" bench/bench_cuda_graph.py -k "steps and 3-float32"
    stage kernels 200 "${bench[@]}" bench/bench_kernels.py -k "adam and cpp"
    stage modes 200 "${bench[@]}" bench/bench_cuda_graph.py -k "modes and 3"
    stage speculative 200 "${bench[@]}" bench/bench_speculative.py -k "bundled and texts and 16-10]"
else
    if [ $mode = run ]; then  # for the GPU that is here, which is quicker than for all
        INVERT_FAST_CUDA_ARCHS=$("$python" -c 'import torch; print("%d%d-real" % torch.cuda.get_device_capability())')
        export INVERT_FAST_CUDA_ARCHS
    fi
    [ -n "${INVERT_FAST_SITE:-}" ] || stage build 120 "${build[@]}" || link_sources
    # Kernels compiled for this GPU: TRITON_INTERPRET=0 takes the tests out of Triton's interpreter.
    stage test-gpu 120 env TRITON_INTERPRET=0 "${tests[@]}" tests/ops/test_triton.py tests/ops/test_cuda.py \
        tests/model/test_cuda_graph.py tests/ops/test_triton_attention.py
    stage eight-billion 100 "${bench[@]}" bench/bench_speculative.py -k eight_billion
    stage speculative 60 "${bench[@]}" bench/bench_speculative.py -k "texts and not 1024 and not 10"
    stage kernels 60 "${bench[@]}" bench/bench_kernels.py
    stage captured 60 "${bench[@]}" bench/bench_cuda_graph.py -k "steps and not 4096"
    stage modes 90 "${bench[@]}" bench/bench_cuda_graph.py -k modes
    stage captured-4096 60 "${bench[@]}" bench/bench_cuda_graph.py -k "steps and 4096"
    stage test-rest 60 "${tests[@]}" tests/ops tests/model/test_lanes.py -x
fi
[ $mode = dry ] && exit 0

"$python" bench/gpu_summary.py "$out" || exit 1
if grep -q FAILED "$out/stages.txt"; then exit 1; fi
