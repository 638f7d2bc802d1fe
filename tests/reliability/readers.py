"""Every reader of files that may come from strangers: good files to begin with, and how each is read to its end."""
from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[2]), str(Path(__file__).parents[1])]

import numpy as np  # noqa: E402
from make_models import make_tiny  # noqa: E402

from lorafast.adapters import AdapterFile, BaseModel, read_adapter, write_adapter  # noqa: E402
from lorafast.adapters.checkpoint import Geometry, TrainState, read_checkpoint, write_checkpoint  # noqa: E402
from lorafast.commands.check import check  # noqa: E402
from lorafast.commands.inspect_model import inspect_file  # noqa: E402
from lorafast.commands.merge import merge_model  # noqa: E402
from lorafast.data.open import DataOptions, open_data  # noqa: E402
from lorafast.gguf.file_form import FileForm  # noqa: E402
from lorafast.gguf.reader import GGUFFile, open_model  # noqa: E402
from lorafast.gguf.writer import TensorToWrite, write_gguf  # noqa: E402
from lorafast.network.hparams import read_hparams  # noqa: E402
from lorafast.network.lora import Adapter, Moments, default_ranks, specs_for  # noqa: E402
from lorafast.options.finetune import FinetuneConfig  # noqa: E402
from lorafast.options.toml import read_options  # noqa: E402
from lorafast.reporting.metrics import read_metrics  # noqa: E402
from lorafast.reporting.report import charts_of, page_of  # noqa: E402
from lorafast.tokenizer import Tokenizer, load_tokenizer  # noqa: E402


@dataclass(frozen=True)
class Reader:
    """name: of what is read. file: where an input goes. seeds: good inputs. read: reads what was placed."""

    name: str
    file: str
    make: Callable[[Path], Iterable[bytes]]
    read: Callable[[Path], object]

    def seeds(self, folder: Path) -> Iterator[bytes]:
        """Good inputs; what else reading needs is left in the folder."""
        make_tiny(folder / "base.gguf", n_layer=1, n_embd=32, n_ff=32, n_head=2, n_head_kv=1)
        yield from self.make(folder)

    def place(self, data: bytes, folder: Path) -> None:
        """Puts an input where it is read."""
        (folder / self.file).write_bytes(data)

    def good(self, folder: Path, seeds: Iterable[bytes]) -> None:
        """AssertionError, or what reading raises, if a seed is no good file: then nothing deep would be tried."""
        for data in seeds:
            self.place(data, folder)
            self.read(folder)


@lru_cache(maxsize=1)
def base_of(folder: Path) -> tuple[GGUFFile, BaseModel]:
    """The good model beside the inputs."""
    model = open_model(folder / "base.gguf")
    return model, BaseModel.from_gguf(model)


@lru_cache(maxsize=1)
def tokenizer_of(folder: Path) -> Tokenizer:
    """Of the good model."""
    return load_tokenizer(base_of(folder)[0])


def adapter_for(folder: Path) -> Adapter:
    adapter = Adapter(specs_for(read_hparams(base_of(folder)[0]).tensor_shapes(), default_ranks(2),
                                ("attn_q", "attn_k", "ffn_down")), 2, 2)
    adapter.params[:] = np.random.default_rng(1).standard_normal(len(adapter.params), np.float32)
    return adapter


def make_model(folder: Path) -> Iterator[bytes]:
    yield (folder / "base.gguf").read_bytes()
    for vocab, architecture in (("BPE", "llama"), ("SPM", "qwen2")):
        try:
            make_tiny(folder / "other.gguf", n_layer=1, n_embd=32, n_ff=32, n_head=2, n_head_kv=1, vocab=vocab,
                      architecture=architecture)
        except (TypeError, KeyError, ValueError):
            continue
        yield (folder / "other.gguf").read_bytes()


def read_model(folder: Path) -> None:
    path = str(folder / "a.gguf")
    for _ in inspect_file(path):
        pass
    model = open_model(path)
    BaseModel.from_gguf(model)
    read_hparams(model)
    tokenizer = load_tokenizer(model)
    tokenizer.decode(tokenizer.encode("the love, of 3 kinds", add_special=True))


def without_checksum(path: Path) -> bytes:
    """A GGUF file that is not refused for each change."""
    file = GGUFFile(path)
    write_gguf(path, [(key, file.value_types[key], value) for key, value in file.metadata.items()
                      if "crc32" not in key],
               [TensorToWrite(t.name, t.type, t.shape, np.array(t.data)) for t in file.tensors.values()])
    return path.read_bytes()


def make_checkpoint(folder: Path) -> Iterator[bytes]:
    adapter, hparams = adapter_for(folder), read_hparams(base_of(folder)[0])
    geometry = Geometry(8, hparams.n_embd, 32, 2, 1, 1, 16, 1e-5, 1e4, 1.0)
    for extras in (None, {"version": "1", "best_loss": 2.5}):
        write_checkpoint(folder / "a.gguf", geometry, adapter, Moments(adapter), TrainState(iteration=3), extras)
        yield without_checksum(folder / "a.gguf")


def read_a_checkpoint(folder: Path) -> None:
    for _ in inspect_file(str(folder / "a.gguf")):
        pass
    checkpoint = read_checkpoint(folder / "a.gguf")
    adapter = adapter_for(folder)
    checkpoint.load_adapter(adapter, Geometry(8, 32, 32, 2, 1, 1, 16, 1e-5, 1e4, 1.0))
    checkpoint.load_training_state(adapter, Moments(adapter), 0)


def make_gguf_adapter(folder: Path) -> Iterator[bytes]:
    write_adapter(FileForm.GGUF, folder / "a.gguf", AdapterFile.of(adapter_for(folder)), base_of(folder)[1])
    yield without_checksum(folder / "a.gguf")


def make_ggla(folder: Path) -> Iterator[bytes]:
    write_adapter(FileForm.GGLA, folder / "a.bin", AdapterFile.of(adapter_for(folder)), base_of(folder)[1])
    yield (folder / "a.bin").read_bytes()


def use_adapter(folder: Path, path: Path) -> None:
    model, base = base_of(folder)
    for _ in inspect_file(str(path)):
        pass
    adapter = read_adapter(path, base)
    adapter.to_adapter(read_hparams(model).tensor_shapes())
    merge_model(folder / "merged.gguf", model, [(adapter, 1.0)])


def read_gguf_adapter(folder: Path) -> None:
    list(check(GGUFFile(folder / "a.gguf"), base_of(folder)[0]))
    use_adapter(folder, folder / "a.gguf")


def make_peft(folder: Path) -> None:
    write_adapter(FileForm.PEFT, folder / "peft", AdapterFile.of(adapter_for(folder)), base_of(folder)[1])
    weights = folder / "peft" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes().replace(b"lorafast.crc32", b"another.number"))


def make_config(folder: Path) -> Iterator[bytes]:
    make_peft(folder)
    yield (folder / "peft" / "adapter_config.json").read_bytes()
    config = json.loads((folder / "peft" / "adapter_config.json").read_text())
    config |= {"rank_pattern": {r"layers\.0\..*": 2}, "alpha_pattern": {"(q|k)_proj": 4}}
    yield json.dumps(config, indent=2).encode()


def make_safetensors(folder: Path) -> Iterator[bytes]:
    make_peft(folder)
    yield (folder / "peft" / "adapter_model.safetensors").read_bytes()


def make_toml(folder: Path) -> Iterator[bytes]:
    yield (b'ctx = 64\nlora-r = 8\nadam_alpha = 1e-4\ntrain-data = ["a.txt", "b.txt"]\ndora = true\n'
           b'model-base = "m.gguf"\n')


def make_records(folder: Path) -> Iterator[bytes]:
    yield b'{"text": "the love of thy"}\n{"text": "sweet all"}\n'
    yield b'{"prompt": "the love", "completion": "of thy"}\n{"prompt": "x", "completion": "y", "weight": 0.5}\n'
    yield b'[{"instruction": "a", "input": "b", "output": "c"}, {"instruction": "a", "output": "c"}]'


def read_records(folder: Path) -> None:
    read_data(folder, folder / "a.jsonl")


def read_data(folder: Path, path: Path, **options: object) -> None:
    model = base_of(folder)[0]
    open_data(DataOptions([str(path)], **options), tokenizer_of(folder), model.metadata, 1024)


def make_csv(folder: Path) -> Iterator[bytes]:
    yield b'prompt,completion\nthe love,of thy\n"a ""b""",c\n'
    yield b"text\nthe love of thy\nsweet\n"


def make_template(folder: Path) -> Iterator[bytes]:
    (folder / "chats.jsonl").write_text('{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", '
                                        '"content": "b"}]}\n' * 3)
    yield (b"{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}[{{ message['content'] }}]"
           b"{% else %}{{ message.content | trim }}{{ eos_token }}{% endif %}{% endfor %}")
    yield (b"{% macro told(m, i=0) -%}{{ i ~ ': ' ~ m.role.upper() }}{%- endmacro %}{% set ns = namespace(n=0) %}"
           b"{% if tools %}{{ tools | tojson(indent=2) }}{% endif %}{% for m in messages[:2] if m.content is string %}"
           b"{% set ns.n = ns.n + loop.index0 %}{{ told(m, ns.n) }} {{ m['content'].split('a') | join(', ') }}"
           b"{% endfor %}{{ messages | map(attribute='content') | list | length }}{{ '%s' | format(bos_token) }}")


def read_template(folder: Path) -> None:
    read_data(folder, folder / "chats.jsonl", chat_template=str(folder / "a.jinja"))


def make_metrics(folder: Path) -> Iterator[bytes]:
    lines = [{"event": "started", "iteration": 0, "time": 1.5, "n_iter": 4, "n_params": 8,
              "config": {"ctx": 8, "seed": 1}},
             *({"event": "step", "iteration": i, "time": 2.0, "loss": 2.5, "learning_rate": 1e-4, "gradient_norm": 0.5,
                "tokens": 16, "epochs": 0, "seconds": 0.25, "tokens_per_second": 64.0,
                "memory": 1000} for i in (1, 2, 3)),
             {"event": "evaluation", "iteration": 3, "time": 3.0, "loss": 2.25, "n_tokens": 8, "is_best": True,
              "perplexity": 9.5},
             {"event": "continuation", "iteration": 3, "time": 3.0, "prompt": "a", "text": "b"},
             {"event": "ended", "iteration": 3, "time": 4.0, "reason": "all done", "seconds": 1.0}]
    yield b"".join(json.dumps(line).encode() + b"\n" for line in lines)


def read_report(folder: Path) -> None:
    """All of a report but the image, which another library draws."""
    records = list(read_metrics(folder / "metrics.jsonl"))
    charts = charts_of(records)
    if any(chart.drawn for chart in charts):
        page_of(records, charts)


READERS = [
    Reader("GGUF models", "a.gguf", make_model, read_model),
    Reader("checkpoints", "a.gguf", make_checkpoint, read_a_checkpoint),
    Reader("GGUF adapters", "a.gguf", make_gguf_adapter, read_gguf_adapter),
    Reader("ggla adapters", "a.bin", make_ggla, lambda folder: use_adapter(folder, folder / "a.bin")),
    Reader("PEFT configs", "peft/adapter_config.json", make_config,
           lambda folder: use_adapter(folder, folder / "peft")),
    Reader("safetensors", "peft/adapter_model.safetensors", make_safetensors,
           lambda folder: use_adapter(folder, folder / "peft")),
    Reader("TOML", "a.toml", make_toml, lambda folder: read_options(FinetuneConfig, str(folder / "a.toml"))),
    Reader("JSON records", "a.jsonl", make_records, read_records),
    Reader("CSV records", "a.csv", make_csv, lambda folder: read_data(folder, folder / "a.csv")),
    Reader("chat templates", "a.jinja", make_template, read_template),
    Reader("metrics", "metrics.jsonl", make_metrics, read_report),
]
