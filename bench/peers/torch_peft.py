"""The process in which bench_train.py runs PyTorch + PEFT: the same geometry, random weights, one training step a line.

    python bench/peers/torch_peft.py GEOMETRY BATCH CTX THREADS TYPE(float32|bfloat16|nf4)

With nf4 the matrices but lm_head are in the 4 bits of bitsandbytes, which unpacks them to float32 for each product.
Rank 4 on q, k, v, o, gate, up, down and lm_head, as in train_worker.py; AdamW as torch has it. Attention is torch's
fused one, and there is no gradient checkpointing.
"""
from __future__ import annotations

import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))
import peft
import torch
import transformers
from geometry import GEOMETRIES
from memory_use import watched
from worker import serve

RANK = 4
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "lm_head"]


def in_4_bits(model: torch.nn.Module) -> torch.nn.Module:
    """The same model with bitsandbytes' matrices, as transformers makes them of a checkpoint."""
    import bitsandbytes

    for parent in list(model.modules()):
        for name, linear in list(parent.named_children()):
            if isinstance(linear, torch.nn.Linear) and name != "lm_head":
                narrow = bitsandbytes.nn.Linear4bit(linear.in_features, linear.out_features, bias=False,
                                                    compute_dtype=torch.float32, quant_type="nf4")
                narrow.weight = bitsandbytes.nn.Params4bit(linear.weight.data, requires_grad=False, quant_type="nf4")
                setattr(parent, name, narrow.to("cpu"))
    model.is_loaded_in_4bit = True          # by which PEFT chooses its layers
    return model


def main() -> None:
    geometry, dtype = GEOMETRIES[sys.argv[1]], getattr(torch, "float32" if sys.argv[5] == "nf4" else sys.argv[5])
    batch, ctx, n_threads = map(int, sys.argv[2:5])
    torch.set_num_threads(n_threads)
    torch.manual_seed(0)
    torch.set_default_dtype(dtype)          # so that a model in bfloat16 never exists in float32
    config = transformers.LlamaConfig(
        vocab_size=geometry.n_vocab, hidden_size=geometry.n_embd, intermediate_size=geometry.n_ff,
        num_hidden_layers=geometry.n_layer, num_attention_heads=geometry.n_head,
        num_key_value_heads=geometry.n_head_kv, max_position_embeddings=4096, attn_implementation="sdpa")
    base = transformers.LlamaForCausalLM(config)
    model = peft.get_peft_model(in_4_bits(base) if sys.argv[5] == "nf4" else base,
                                peft.LoraConfig(r=RANK, lora_alpha=RANK, target_modules=TARGETS, task_type="CAUSAL_LM"))
    model.train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)
    tokens = torch.randint(3, geometry.n_vocab, (batch, ctx))

    def step() -> dict[str, float]:
        began = time.perf_counter()
        optimizer.zero_grad(set_to_none=True)
        loss = model(input_ids=tokens, labels=tokens, use_cache=False).loss
        loss.backward()
        optimizer.step()
        return {"seconds": time.perf_counter() - began, "loss": loss.item()}

    serve({"torch": torch.__version__, "peft": peft.__version__, "isa": torch.backends.cpu.get_cpu_capability()},
          {"step": step, "memory": lambda: watched(step)})


if __name__ == "__main__":
    main()
