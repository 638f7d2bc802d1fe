#!/usr/bin/env bash
# Checks the kernels on every instruction set within reach, without Python: this machine's, on x86_64 AVX-512 in any
# case (avx512_in_c.h), and AArch64 under QEMU where a cross compiler and qemu-aarch64 are installed; clang's code, too,
# where it is installed. Threads are not part of it.
#   $1             one of them only: x86_64, avx512-in-c, aarch64, clang-aarch64, clang-x86_64
#   CC             compiler for this machine
#   WANT_AARCH64=1 to fail where AArch64 can't be checked
#   SANITIZE=1     to check under AddressSanitizer and UndefinedBehaviorSanitizer, on this machine alone
set -euo pipefail
cd "$(dirname "$0")"

build=$(mktemp -d)
trap 'rm -rf "$build"' EXIT
flags=(-std=gnu11 -O3 -fno-math-errno -fno-trapping-math -Wall -Wextra -Werror
       -Wno-unused-function -Wno-unused-parameter -Wno-psabi -I../../kernels)

sanitizers=()
if [ -n "${SANITIZE:-}" ]; then
    sanitizers=(-fsanitize=address,undefined -fno-sanitize-recover=all)
    flags+=(-g1 -O0 "${sanitizers[@]}")
fi

# name, compiler and its options: every instruction set of the architecture is compiled, whether it can run or not
compile() {
    local name=$1; shift
    mkdir "$build/$name"
    for source in *.c; do "$@" "${flags[@]}" -c "$source" -o "$build/$name/${source%.c}.o"; done
}
# name, what runs it
check() {
    local name=$1; shift
    "$@" "$build/$name/check_kernels" >"$build/$name/log" || { cat "$build/$name/log"; exit 1; }
    echo "$name: $(tail -n 1 "$build/$name/log")"
}
have() { command -v "$1" >/dev/null; }
only=${1:-}
wanted() { [ -z "$only" ] || [ "$only" = "$1" ]; }

host=$(uname -m)
if wanted "$host"; then
    compile "$host" "${CC:-cc}"
    "${CC:-cc}" "${sanitizers[@]}" "$build/$host"/*.o -o "$build/$host/check_kernels" -lm
    check "$host"
fi
if [ -n "${SANITIZE:-}" ]; then exit; fi

if [ "$host" = x86_64 ] && wanted avx512-in-c; then
    compile avx512-in-c "${CC:-cc}" -include avx512_in_c.h
    "${CC:-cc}" "$build/avx512-in-c"/*.o -o "$build/avx512-in-c/check_kernels" -lm
    check avx512-in-c
fi
if [ "$host" != aarch64 ] && have aarch64-linux-gnu-gcc && have qemu-aarch64; then
    if wanted aarch64; then
        compile aarch64 aarch64-linux-gnu-gcc
        aarch64-linux-gnu-gcc -static "$build/aarch64"/*.o -o "$build/aarch64/check_kernels" -lm
        check aarch64 qemu-aarch64
    fi
    if have clang && wanted clang-aarch64; then
        compile clang-aarch64 clang --target=aarch64-linux-gnu
        aarch64-linux-gnu-gcc -static "$build/clang-aarch64"/*.o -o "$build/clang-aarch64/check_kernels" -lm
        check clang-aarch64 qemu-aarch64
    fi
elif [ "$host" != aarch64 ]; then
    echo "aarch64: not checked, for want of aarch64-linux-gnu-gcc or qemu-aarch64"
    [ -z "${WANT_AARCH64:-}" ]
fi
if have clang && wanted "clang-$host"; then
    compile "clang-$host" clang
    clang "$build/clang-$host"/*.o -o "$build/clang-$host/check_kernels" -lm
    check "clang-$host"
fi
