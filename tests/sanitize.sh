#!/usr/bin/env bash
# The tests of the kernels with kernels built for AddressSanitizer and UndefinedBehaviorSanitizer; then their contracts and
# shapes chosen at random for ThreadSanitizer, with plain threads instead of libgomp (tests/threads/gomp_threads.c). In
# build/sanitize.
#   $1  the Python to use
#   $2  one of the two only: address or thread
#   $3  the tests: "tests" is the whole suite
#   SHAPES  how many shapes of each op
set -euo pipefail
cd "$(dirname "$0")/.."
python=$(realpath -s "${1:-python3}")
cc=(${CC:-cc})
export SHAPES=${SHAPES:-3}

build() {
    LORAFAST_SANITIZE=$2 "$python" setup.py --quiet build --build-base "build/sanitize/$1" \
        --build-lib "build/sanitize/$1/lib"
}
library() { "${cc[@]}" -print-file-name="$1"; }
# build, tests, what runs them
tests() {
    local name=$1 which=$2; shift 2
    PYTHONSAFEPATH=1 PYTHONPATH="$PWD/build/sanitize/$name/lib" "$@" "$python" -m pytest -q -n auto -p no:cacheprovider \
        -o pythonpath="build/sanitize/$name/lib tests ." $which
}

# Python itself is not built for them, so it loads them first; what it never frees is not ours to judge.
if [ "${2:-address}" = address ]; then
    build address address,undefined
    tests address "${3:-tests/kernels}" env LD_PRELOAD="$(library libasan.so):$(library libubsan.so)" \
        ASAN_OPTIONS=detect_leaks=0
fi
if [ "${2:-thread}" = thread ]; then
    build thread thread
    threads=$PWD/build/sanitize/thread/gomp_threads.so
    "${cc[@]}" -O1 -g -fsanitize=thread -shared -fPIC -o "$threads" tests/threads/gomp_threads.c -lpthread
    export TSAN_OPTIONS=halt_on_error=1
    # Without address space randomisation, in which ThreadSanitizer of older compilers finds no room for its shadow.
    tests thread "${3:-tests/kernels/test_contracts.py tests/kernels/test_fuzzed_shapes.py}" \
        setarch -R env LD_PRELOAD="$(library libtsan.so):$threads"
fi
