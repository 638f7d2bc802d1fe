#!/usr/bin/env bash
# The sdist holds all it takes to build the wheel, and the wheel works where the sources are not.
#   $1  the Python to build with
set -euo pipefail
cd "$(dirname "$0")/.."
python=$(realpath -s "${1:-python3}")

"$python" -m pip install --quiet build
rm -rf dist
"$python" -m build --outdir dist .
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
"$python" -m venv "$scratch/venv"
"$scratch/venv/bin/python" -m pip install --quiet dist/*.whl
cp tests/make_models.py examples/sonnets.txt "$scratch"
cd "$scratch"
venv/bin/python -c 'from make_models import make_tiny; make_tiny("tiny.gguf")'
venv/bin/lorafast --version
venv/bin/lorafast finetune --model-base tiny.gguf --train-data sonnets.txt --ctx 32 --batch 2 --adam-iter 2 \
    --lora-out a-ITERATION.gguf --lora-out a-ITERATION.bin --lora-out a-ITERATION/ --checkpoint-out c-ITERATION.gguf
venv/bin/python -m lorafast generate --model-base tiny.gguf --lora a-LATEST.gguf --prompt "my love" --n-predict 5
ls -l a-2.gguf a-2.bin a-2/adapter_model.safetensors c-2.gguf
