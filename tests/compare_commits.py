"""Whether two commits compute the same bits: python tests/compare_commits.py OLD NEW [--model MODEL.gguf]

OLD and NEW are commits, each built in a folder of its own, or folders with a built checkout. Both run the same commands
on the same tiny models (and on MODEL, say SmolLM2), each in a process of its own; compared are the losses and gradient
norms of every iteration, the tensors of every adapter and checkpoint, and generated texts and perplexities. The new
commit goes on from the old one's checkpoints, too. Prints a line a case; exits 1 if any differs.

The case with accumulation differs from commits before passes were summed in a tree (network/pass_sums.py).
"""
from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

TINY = ["--ctx", "32", "--batch", "4", "--seed", "3", "--warmup", "2", "--adam-alpha", "3e-3", "--preset", "original"]
TEXT = ["--train-data", "text.txt", "--adam-iter", "6", "--save-every", "3"]
CHATS = ["--train-data", "chats.jsonl", "--adam-iter", "6", "--save-every", "3"]
CASES = {
    "text": ["tiny", *TEXT],
    "text, one thread, checkpointing": ["tiny", *TEXT, "--threads", "1", "--use-checkpointing"],
    "text, tied, no checkpointing": ["tied", *TEXT, "--no-checkpointing"],
    "text, micro-batches, head tokens, checkpoint every": [
        "tiny", *TEXT, "--micro-batch", "2", "--head-tokens", "16", "--checkpoint-every", "2"],
    "Q4_K": ["q4_K", *TEXT],
    "mixed types, grouped queries": ["mixed", *TEXT],
    "chats": ["tiny", *CHATS],
    "chats, packed": ["tiny", *CHATS, "--pack"],
    "DoRA": ["tiny", *TEXT, "--dora", "--lora-out", "a-ITERATION/"],
    "DoRA on everything, dropout": ["tiny", *TEXT, "--dora", "--targets", "attn,ffn,output,token_embd",
                                    "--lora-dropout", "0.2", "--lora-out", "a-ITERATION/"],
    "dropout, LoRA+, rsLoRA, accumulation": [
        "tiny", *TEXT, "--lora-dropout", "0.2", "--lora-plus", "8", "--rslora", "--lora-r", "9", "--grad-acc", "2"],
    "evaluation, samples": ["tiny", *TEXT, "--valid-split", "0.1", "--eval-every", "2", "--sample-prompt", "the love"],
    "upper layers": ["tiny", *TEXT, "--layers", "1"],
}
REAL = {
    "real: text": [*TEXT, "--adam-iter", "4", "--ctx", "64"],
    "real: chats, packed": [*CHATS, "--adam-iter", "3", "--ctx", "64", "--pack"],
    "real: a limit that streams": [*TEXT, "--adam-iter", "2", "--ctx", "64", "--mem-limit", "190M"],
}
USES = {
    "generate": ["generate", "--prompt", "Shall I compare thee", "--n-predict", "24", "--seed", "1"],
    "perplexity": ["perplexity", "--file", "text.txt", "--ctx", "64", "--chunks", "4"],
}


def checkout(name: str, folder: Path) -> Path:
    """A built checkout of a commit, or the folder of that name."""
    if Path(name).is_dir():
        return Path(name).resolve()
    subprocess.run(["git", "worktree", "add", "-q", "--detach", folder, name], cwd=ROOT, check=True)
    subprocess.run([sys.executable, "setup.py", "--quiet", "build_ext", "--inplace"], cwd=folder, check=True)
    return folder


def lorafast(tree: Path, folder: Path, *arguments: str) -> str:
    """What a command of that checkout prints, run in `folder`."""
    run = subprocess.run([sys.executable, "-m", "lorafast", *arguments], cwd=folder, capture_output=True, text=True,
                         env={**os.environ, "PYTHONPATH": str(tree)})
    if run.returncode:
        raise SystemExit(f"{tree}: lorafast {' '.join(arguments)}: {run.stderr.strip()}")
    return run.stdout


def train(tree: Path, folder: Path, model: Path, options: list[str]) -> None:
    folder.mkdir()
    for data in folder.parent.parent.glob("data/*"):
        (folder / data.name).symlink_to(data)
    outputs = [] if "--lora-out" in options else ["--lora-out", "a-ITERATION.gguf"]
    lorafast(tree, folder, "finetune", "--model-base", str(model), *TINY, "--checkpoint-out", "c-ITERATION.gguf",
             "--metrics", "metrics.jsonl", *outputs, *options)


def differences(old: Path, new: Path) -> list[str]:
    """What two runs left that is not the same."""
    from lorafast.gguf.safetensors import read_safetensors

    found = []
    files = sorted(path.relative_to(old) for path in old.rglob("*") if path.is_file() and not path.is_symlink())
    for name in files:
        if not (new / name).exists():
            found.append(f"{name} is missing")
        elif name.name == "metrics.jsonl":
            records = zip(numbers(old / name), numbers(new / name), strict=True)
            found += [f"{name}: {a} and {b}" for a, b in records if a != b]
        elif name.name.startswith("c-"):
            found += [f"{name}: {tensor}" for tensor in unlike_tensors(old / name, new / name)]
        elif name.suffix == ".bin" and (old / name).read_bytes() != (new / name).read_bytes():
            found.append(str(name))
        elif name.suffix == ".safetensors":
            a, b = read_safetensors(old / name), read_safetensors(new / name)      # the header may hold more than they
            found += [f"{name}: {tensor}" for tensor in a if not np.array_equal(a[tensor], b.get(tensor))]
        elif name.suffix == ".gguf":
            found += [f"{name}: {tensor}" for tensor in unlike_tensors(old / name, new / name)]
    return found


def numbers(path: Path) -> list[dict]:
    """The records of a metrics file without times."""
    keys = ("event", "iteration", "loss", "gradient_norm", "grad_norm", "learning_rate", "text", "best")
    records = map(json.loads, path.read_text().splitlines())
    return [{key: record[key] for key in keys if key in record} for record in records]


def unlike_tensors(old: Path, new: Path) -> list[str]:
    """Names of tensors whose bytes differ, and of keys of the training state that do."""
    from lorafast.gguf.reader import GGUFFile

    a, b = GGUFFile(old), GGUFFile(new)
    unlike = [name for name in a.tensors if name not in b.tensors
              or not np.array_equal(a.tensors[name].data.view(np.uint8), b.tensors[name].data.view(np.uint8))]
    return unlike + [key for key, value in a.metadata.items() if key.startswith(("training.", "optimizer."))
                     and not np.array_equal(value, b.metadata.get(key))]


def report(name: str, found: list[str]) -> bool:
    print(f"{name:<55}" + ("equal" if not found else "DIFFERENT: " + "; ".join(found[:4])), flush=True)
    return bool(found)


def make_inputs(folder: Path, real: str) -> dict[str, Path]:
    """Models by name, and the data, made with this checkout's tests."""
    from make_models import make_tiny

    data = folder / "data"
    data.mkdir()
    sonnets = (ROOT / "examples/sonnets.txt").read_text()
    (data / "text.txt").write_text(sonnets[:40000])
    chats = [{"messages": [{"role": "user", "content": part[:40]}, {"role": "assistant", "content": part[40:120]}]}
             for part in re.findall(r"(?s).{120}", sonnets[:9000])]
    (data / "chats.jsonl").write_text("".join(json.dumps(chat) + "\n" for chat in chats))
    template = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{{ eos_token }}{% endfor %}"
    mixed = {"blk.0.attn_v.weight": "F16", "blk.1.ffn_down.weight": "Q5_1", "output.weight": "BF16"}
    shapes = {"tiny": dict(n_layer=4), "tied": dict(tied=True, embd_std=0.1),
              "q4_K": dict(type="Q4_K", n_embd=256, n_ff=256), "mixed": dict(types=mixed)}
    (data / "template.jinja").write_text(template)
    models = {name: make_tiny(folder / f"{name}.gguf", **options) for name, options in shapes.items()}
    return models | ({"real": Path(real).resolve()} if real else {})


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("old")
    parser.add_argument("new")
    parser.add_argument("--model", default="", help="a real model to compare on as well")
    options = parser.parse_args()
    bad = False
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        trees = {"old": checkout(options.old, folder / "tree-old"), "new": checkout(options.new, folder / "tree-new")}
        models = make_inputs(folder, options.model)
        cases = {name: (models[case[0]], case[1:]) for name, case in CASES.items()}
        cases |= {name: (models["real"], case) for name, case in REAL.items() if options.model}
        for number, (name, (model, case)) in enumerate(cases.items()):
            case = [*case, "--chat-template", "template.jinja"] if "chats.jsonl" in case else case
            runs = {side: folder / side / str(number) for side in trees}
            for side, tree in trees.items():
                runs[side].parent.mkdir(exist_ok=True)
                train(tree, runs[side], model, case)
            bad |= report(name, differences(runs["old"], runs["new"]))
        bad |= uses_differ(trees, folder, models)
        for name in trees:
            subprocess.run(["git", "worktree", "remove", "--force", folder / f"tree-{name}"], cwd=ROOT,
                           capture_output=True)
    return int(bad)


def uses_differ(trees: dict[str, Path], folder: Path, models: dict[str, Path]) -> bool:
    """Generation, perplexity, and going on from the old commit's checkpoint."""
    bad, first = False, folder / "old/0"
    for name, command in USES.items():
        shown = [lorafast(tree, first, *command, "--model-base", str(models["tiny"]), "--lora", "a-LATEST.gguf")
                 for tree in trees.values()]
        shown = [re.sub(r"in [0-9.]+ s.*|, \d+ a second", "", text) for text in shown]
        bad |= report(name, [] if shown[0] == shown[1] else shown)
    for side, tree in trees.items():
        train(tree, folder / side / "resumed", models["tiny"],
              [*TEXT, "--adam-iter", "3", "--checkpoint-in", str(first / "c-3.gguf")])
    bad |= report("resumed from an old checkpoint", differences(folder / "old/resumed", folder / "new/resumed"))
    return bad


if __name__ == "__main__":
    sys.exit(main())
