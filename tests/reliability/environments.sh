#!/usr/bin/env bash
# Builds and tests lorafast in every environment that is found here, and prints a table:
#   every Python from 3.10 on (none is downloaded), NumPy 1.26 and the newest, GCC and clang, without OpenMP; the kernels
#   by themselves on AArch64, emulated; and with the Python that runs it: plain instructions only, no HOME, an ASCII
#   locale, no /proc.
#   tests/reliability/environments.sh           all
#   tests/reliability/environments.sh settings  what needs no build; CI runs that
# MINORS names some of the Pythons only, as "10 13"; TESTS names the tests; PYTHON the Python of the settings, with lorafast's kernels built in place.
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
# name, Python, version of NumPy, settings of the build: in a copy, so that the kernels here stay
build_and_try() {
    local name=$1 interpreter=$2 numpy=$3; shift 3
    local place="$work/$((++number))"
    mkdir "$place" && git archive HEAD | tar -x -C "$place"
    if ! { "$interpreter" -m venv "$place/venv" \
           && "$place/venv/bin/pip" install -q "$numpy" 'setuptools>=77' 'cython>=3' 'pytest>=8' 'rich>=13' 'jinja2>=3.1' \
               'tomli>=2' 'gguf>=0.10' 'safetensors>=0.4' \
           && (cd "$place" && env "$@" venv/bin/python setup.py --quiet build_ext --inplace); } >"$work/log" 2>&1; then
        row "$name" "not built: $(grep -v '^ ' "$work/log" | tail -n 1)"
        failed=1
        return
    fi
    (cd "$place" && try "$name" env PYTHONPATH="$place" "$place/venv/bin/python"; exit $failed) || failed=1
    rm -rf "$place"
}
number=0

row environment outcome
row --- ---
if [ "${1:-all}" = all ]; then
    for minor in ${MINORS:-10 11 12 13 14}; do
        found=$(ls "${PYENV_ROOT:-$HOME/.pyenv}"/versions/3.$minor.*/bin/python 2>/dev/null | tail -n 1)
        found=${found:-$(command -v "python3.$minor")}
        [ -n "$found" ] || continue
        "$found" -c 'import ensurepip' 2>/dev/null || continue
        build_and_try "Python 3.$minor, newest NumPy" "$found" numpy
        last=$found
        [ $minor -gt 12 ] || build_and_try "Python 3.$minor, NumPy 1.26" "$found" 'numpy==1.26.*'
    done
    build_and_try "without OpenMP" "${last:-$python}" numpy LORAFAST_NO_OPENMP=1
    if command -v clang >/dev/null; then
        build_and_try "clang, without OpenMP" "${last:-$python}" numpy CC=clang LORAFAST_NO_OPENMP=1
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
