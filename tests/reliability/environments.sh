#!/usr/bin/env bash
# Builds and tests lorafast in every environment that is found here, and prints a table:
#   every Python from 3.10 on (none is downloaded), NumPy 1.26 and the newest, GCC and clang, without OpenMP; the kernels
#   by themselves on AArch64, emulated; and with the Python that runs it: plain instructions only, no HOME, an ASCII
#   locale, no /proc.
#   tests/reliability/environments.sh           all
#   tests/reliability/environments.sh settings  what needs no build; CI runs that
# MINORS names some of the Pythons only, as "10 13"; TESTS names the tests; PYTHON is the Python of the settings, with
# lorafast's kernels built in place.
set -uo pipefail
cd "$(dirname "$0")/../.."
read -ra tests <<<"${TESTS:-tests/test_cli.py tests/system tests/gguf/test_fingerprint.py tests/training/test_identity.py
    tests/training/test_signals.py tests/kernels/test_rms_norm.py tests/data/test_open.py}"
python=$(command -v "${PYTHON:-python3}")
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
failed=0

row() { printf '| %s | %s |\n' "$1" "$2"; }
# name, what runs the tests
try() {
    local name=$1; shift
    if "$@" -m pytest -q -p no:cacheprovider "${tests[@]}" >"$work/log" 2>&1; then
        row "$name" "$(tail -n 1 "$work/log")"
    else
        row "$name" "FAILED: $(tail -n 1 "$work/log")"
        tail -n 40 "$work/log" >&2
        failed=1
    fi
}
# name, Python, settings of the build; in a copy, so that the kernels here stay. In `place` then
build() {
    local name=$1 interpreter=$2; shift 2
    place="$work/$((++number))"
    mkdir "$place" && git archive HEAD | tar -x -C "$place"
    "$interpreter" -m venv "$place/venv" \
        && "$place/venv/bin/pip" install -q numpy 'setuptools>=77' 'cython>=3' 'pytest>=8' 'rich>=13' 'jinja2>=3.1' \
            'tomli>=2' 'gguf>=0.10' 'safetensors>=0.4' >"$work/log" 2>&1 \
        && (cd "$place" && env "$@" venv/bin/python setup.py --quiet build_ext --inplace) >>"$work/log" 2>&1 && return
    row "$name" "not built: $(grep -v '^ ' "$work/log" | tail -n 1)"
    failed=1
    return 1
}
# name: the tests in `place`
try_built() { (cd "$place" && try "$1" env PYTHONPATH="$place" "$place/venv/bin/python"; exit $failed) || failed=1; }
build_and_try() { build "$@" && try_built "$1"; rm -rf "$place"; }
number=0

row environment outcome
row --- ---
if [ "${1:-all}" = all ]; then
    for minor in ${MINORS:-10 11 12 13 14}; do
        found=$(ls "${PYENV_ROOT:-$HOME/.pyenv}"/versions/3.$minor.*/bin/python 2>/dev/null | tail -n 1)
        found=${found:-$(command -v "python3.$minor")}
        [ -n "$found" ] || continue
        "$found" -c 'import ensurepip' 2>/dev/null || continue
        last=$found
        if build "Python 3.$minor" "$found"; then       # no kernel knows NumPy: one build serves both versions
            try_built "Python 3.$minor, newest NumPy"
            if [ "$minor" -le 12 ]; then
                "$place/venv/bin/pip" install -q 'numpy==1.26.*' >"$work/log" 2>&1
                try_built "Python 3.$minor, NumPy 1.26"
            fi
        fi
        rm -rf "$place"
    done
    build_and_try "without OpenMP" "${last:-$python}" LORAFAST_NO_OPENMP=1
    if command -v clang >/dev/null; then
        build_and_try "clang, without OpenMP" "${last:-$python}" CC=clang LORAFAST_NO_OPENMP=1
    fi
    if command -v qemu-aarch64 >/dev/null && [ "$(uname -m)" != aarch64 ]; then
        if tests/native/run.sh aarch64 >"$work/log" 2>&1; then
            row "AArch64 under QEMU, kernels alone (tests/native)" "$(tail -n 1 "$work/log")"
        else
            row "AArch64 under QEMU, kernels alone (tests/native)" "FAILED: $(tail -n 1 "$work/log")"
            failed=1
        fi
    fi
fi
try "LORAFAST_ISA=scalar" env LORAFAST_ISA=scalar "$python"
try "no HOME" env -u HOME "$python"
try "an ASCII locale" env LC_ALL=C PYTHONCOERCECLOCALE=0 PYTHONUTF8=0 "$python"
if unshare -m true 2>/dev/null; then
    try "no /proc" unshare -m sh -c 'mount -t tmpfs none /proc && exec "$@"' sh "$python"
else
    row "no /proc" "not tried: needs the right to mount"
fi
exit $failed
