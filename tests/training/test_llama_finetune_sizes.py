"""The sizes against what the original printed for three models."""
import re
from pathlib import Path

import pytest

from lorafast.network.lora import PairSpec, specs_for
from lorafast.options.finetune import FinetuneConfig
from lorafast.training import llama_finetune_sizes as sizes

GOLDEN = Path(__file__).parents[1] / "golden"

# log, n_embd, n_ff, n_layer, n_vocab, threads
RUNS = [
    ("seed-run.log", 4096, 11008, 32, 32000, 6),
    ("tinymha-seed1.log", 64, 160, 2, 32000, 1),
    ("smollm2-mha-seed1.log", 576, 1536, 30, 49152, 2),
]


def multi_head_specs(n_embd: int, n_ff: int, n_layer: int, n_vocab: int) -> tuple[PairSpec, ...]:
    """Every pair of a multi-head model with an output matrix of its own, with the default ranks."""
    shapes = {"token_embd.weight": (n_vocab, n_embd), "output.weight": (n_vocab, n_embd),
              "output_norm.weight": (n_embd,)}
    for layer in range(n_layer):
        for role in ("attn_q", "attn_k", "attn_v", "attn_output"):
            shapes[f"blk.{layer}.{role}.weight"] = (n_embd, n_embd)
        for role, shape in (("ffn_gate", (n_ff, n_embd)), ("ffn_up", (n_ff, n_embd)), ("ffn_down", (n_embd, n_ff)),
                            ("attn_norm", (n_embd,)), ("ffn_norm", (n_embd,))):
            shapes[f"blk.{layer}.{role}.weight"] = shape
    config = FinetuneConfig(model_base="m.gguf", lora_out=("a.bin",))
    return specs_for(shapes, config.ranks_by_role(), config.target_list())


@pytest.mark.parametrize("log, n_embd, n_ff, n_layer, n_vocab, threads", RUNS, ids=lambda value: str(value))
def test_sizes_equal_the_originals(log, n_embd, n_ff, n_layer, n_vocab, threads):
    specs = multi_head_specs(n_embd, n_ff, n_layer, n_vocab)
    n_params = sum(spec.n_params for spec in specs)
    printed = {name: int(n) for name, n in re.findall(r"(\w+_size) +?= (\d+) bytes", (GOLDEN / log).read_text())}
    printed.pop("compute_size")
    assert printed == {
        "lora_size": sizes.lora_size(specs),
        "opt_size": sizes.opt_size(n_params, past=0),
        "input_size": sizes.input_size(ctx=64, batch=4, n_vocab=n_vocab),
        "work_size": sizes.work_size(threads, n_vocab),
    }


def test_7b_parameters():
    assert sum(spec.n_params for spec in multi_head_specs(4096, 11008, 32, 32000)) == 10_549_313


def test_past_losses_are_counted():
    # 16 + 368 for the tensor and 4 * 10 for its values, from 126,592,908 before padding
    assert sizes.opt_size(10_549_313, past=10) == sizes.pad(126_592_908 + 424, 16)


@pytest.mark.parametrize("geometry, checkpoint, adapter", [
    ((4096, 11008, 32, 32000), 126_641_472, 42_234_240),
    ((64, 160, 2, 32000), 3_207_296, 1_067_904),
], ids=["7b", "tiny"])
def test_bounds_are_above_the_real_sizes_but_not_far(geometry, checkpoint, adapter):
    specs = multi_head_specs(*geometry)
    assert checkpoint <= sizes.checkpoint_bound(specs) <= checkpoint * 1.02 + 65536
    assert adapter <= sizes.adapter_bound(specs) <= adapter * 1.02 + 4 * 65536


def test_magnitudes_are_counted():
    plain, dora = (specs_for({"output.weight": (40, 8)}, {"output": 3}, dora=dora) for dora in (False, True))
    assert sizes.lora_size(dora) - sizes.lora_size(plain) == 2 * (sizes.TENSOR + 4 * 40)
    assert sizes.checkpoint_bound(dora) - sizes.checkpoint_bound(plain) == 3 * 4 * 40 + 128
