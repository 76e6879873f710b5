#!/bin/sh
# The kernel tests under the address and undefined-behaviour sanitizers, and a run of the fuzzer. Builds the
# native module in a copy of the sources, because the checkout's own must stay loadable without sanitizers.
#   tests/engines/sanitize.sh [PYTHON] [FUZZ_SECONDS]
set -eu
python=${1:-python3}
seconds=${2:-30}
python=$(command -v "$python")
# Absolute, since the tests run in another folder; beside it is the cmake that `make setup` installs.
bin=$(cd "$(dirname "$python")" && pwd)
python=$bin/${python##*/}
PATH=$bin:$PATH
root=$(cd "$(dirname "$0")/../.." && pwd)
work=$root/build/sanitize
mkdir -p "$work/tree"
for part in engines maskgen tests benchmarks twofour CMakeLists.txt pyproject.toml; do
  rm -rf "$work/tree/$part"
  cp -R "$root/$part" "$work/tree/$part"
done
rm -f "$work"/tree/engines/native/*.so
cmake -S "$work/tree" -B "$work/build" -DTWOFOUR_SANITIZE=ON -DPython_EXECUTABLE="$python"
cmake --build "$work/build" --parallel 2

cd "$work/tree"
# Python is not built with the sanitizer, so its run time comes first; what Python itself never frees is
# no leak of ours. OpenMP workers stay alive at exit.
LD_PRELOAD="$(c++ -print-file-name=libasan.so) $(c++ -print-file-name=libstdc++.so)"
ASAN_OPTIONS=detect_leaks=0:abort_on_error=1
UBSAN_OPTIONS=print_stacktrace=1:halt_on_error=1
export LD_PRELOAD ASAN_OPTIONS UBSAN_OPTIONS
"$python" tests/engines/from_tree.py pytest -p no:cacheprovider --timeout 1200 \
  tests/engines/native/test_layout.py tests/engines/native/test_kernels.py tests/engines/native/test_patch.py \
  tests/engines/native/test_lowbit_layout.py tests/engines/native/test_lowbit_kernels.py tests/engines/native/test_lowbit_patch.py \
  tests/engines/native/test_decoder.py
"$python" tests/engines/from_tree.py tests/fuzz/fuzz_unpack.py --seconds "$seconds"
