#!/usr/bin/env bash
# The tests of the kernels with kernels built for AddressSanitizer and UndefinedBehaviorSanitizer, in build/sanitize.
#   $1  the Python to use
set -euo pipefail
cd "$(dirname "$0")/.."
python=$(realpath -s "${1:-python3}")

LORAFAST_SANITIZE=1 "$python" setup.py --quiet build --build-base build/sanitize --build-lib build/sanitize/lib
library() { "${CC:-cc}" -print-file-name="$1"; }
# Python itself is not built for them, so it loads them first; what it never frees is not ours to judge.
LD_PRELOAD="$(library libasan.so):$(library libubsan.so)" ASAN_OPTIONS=detect_leaks=0 PYTHONSAFEPATH=1 \
    "$python" -m pytest -q -p no:cacheprovider -o pythonpath="build/sanitize/lib tests" tests/kernels
