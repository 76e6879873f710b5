#!/bin/sh
# The tests of the int8 and int4 kernels for VNNI and AVX-512, on a machine without these: SIMDe's portable
# intrinsics in place of the processor's. Needs SIMDe's headers (Debian and Ubuntu: libsimde-dev). Builds the
# native module in a copy of the sources, since it must be used for nothing else.
#   tests/engines/emulated.sh [PYTHON]
set -eu
python=${1:-python3}
python=$(command -v "$python")
# Absolute, since the tests run in another folder; beside it is the cmake that `make setup` installs.
bin=$(cd "$(dirname "$python")" && pwd)
python=$bin/${python##*/}
PATH=$bin:$PATH
root=$(cd "$(dirname "$0")/../.." && pwd)
work=$root/build/emulated
mkdir -p "$work/tree"
for part in engines maskgen tests benchmarks twofour CMakeLists.txt pyproject.toml; do
  rm -rf "$work/tree/$part"
  cp -Rp "$root/$part" "$work/tree/$part"
done
rm -f "$work"/tree/engines/native/*.so
cmake -S "$work/tree" -B "$work/build" -DTWOFOUR_EMULATED=ON -DPython_EXECUTABLE="$python"
cmake --build "$work/build" --parallel 2 --target _native

cd "$work/tree"
TWOFOUR_ISA=portable "$python" tests/engines/from_tree.py pytest -p no:cacheprovider --timeout 1200 \
  tests/engines/native/test_lowbit_kernels.py tests/engines/native/test_lowbit_patch.py
