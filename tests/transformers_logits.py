"""Logits and gradients of transformers and PEFT in float32, from a process of its own."""
from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

import numpy as np

HF_NAMES = {"attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm", "attn_q": "self_attn.q_proj",
            "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj",
            "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj"}


def transformers_logits(folder: Path, model: Path, tokens: np.ndarray, adapter: Path | None = None) -> np.ndarray:
    """float32 (n, n_vocab) for tokens int32 (n,), of the GGUF `model` and a PEFT folder. `folder` takes the process's files."""
    np.save(folder / "hf_tokens.npy", tokens.astype(np.int64))
    options = ["--adapter", adapter] if adapter else []
    _run(model, folder / "hf_tokens.npy", folder / "hf_out.npy", *options)
    return np.load(folder / "hf_out.npy")


def peft_gradients(folder: Path, model: Path, adapter: Path, tokens: np.ndarray, targets: np.ndarray) -> Path:
    """The gradients of the mean cross entropy over targets that are not -1, int32 (rows, ctx) as the tokens, in
    training mode: a PEFT folder like `adapter` with gradients in the place of its values.
    """
    np.save(folder / "hf_tokens.npy", tokens.astype(np.int64))
    np.save(folder / "hf_targets.npy", targets.astype(np.int64))
    options = ["--adapter", adapter, "--targets", folder / "hf_targets.npy"]
    _run(model, folder / "hf_tokens.npy", folder / "gradients", *options)
    return folder / "gradients"


def _run(*arguments: object) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}      # it uses lorafast to read the model
    command = [sys.executable, __file__, *map(str, arguments)]
    subprocess.run(command, check=True, stderr=subprocess.DEVNULL, env=environment)


def main(model: str, tokens: str, out: str, adapter: str | None, targets: str | None) -> None:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from lorafast.gguf import open_model
    from lorafast.hparams import read_hparams

    gguf = open_model(model)
    hp = read_hparams(gguf)
    config = LlamaConfig(
        vocab_size=hp.n_vocab, hidden_size=hp.n_embd, intermediate_size=hp.n_ff, num_hidden_layers=hp.n_layer,
        num_attention_heads=hp.n_head, num_key_value_heads=hp.n_head_kv, rms_norm_eps=hp.norm_rms_eps, tie_word_embeddings=hp.tied,
        max_position_embeddings=hp.n_ctx_train, rope_parameters={"rope_type": "default", "rope_theta": hp.rope_freq_base})
    weights = {}
    for name, tensor in gguf.tensors.items():
        w = tensor.to_float32()
        part = name.split(".")
        if part[0] == "blk":
            if part[2] in ("attn_q", "attn_k"):             # GGUF pairs neighbours in RoPE, transformers the two halves of a head
                n_head = hp.n_head if part[2] == "attn_q" else hp.n_head_kv
                w = w.reshape(n_head, -1, 2, hp.n_embd).swapaxes(1, 2).reshape(w.shape)
            name = f"model.layers.{part[1]}.{HF_NAMES[part[2]]}.weight"
        else:
            name = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}[part[0]] + ".weight"
        weights[name] = torch.from_numpy(np.ascontiguousarray(w))
    network = LlamaForCausalLM(config)
    missing, unexpected = network.load_state_dict(weights, strict=False)
    assert not unexpected and set(missing) <= {"lm_head.weight"}, (missing, unexpected)
    network.tie_weights()
    if adapter:
        from peft import PeftModel

        network = PeftModel.from_pretrained(network, adapter, is_trainable=targets is not None)
    ids = torch.from_numpy(np.load(tokens))
    if targets is None:
        with torch.no_grad():
            np.save(out, network.eval()(ids[None]).logits[0].numpy())
        return
    logits, wanted = network.train()(ids).logits, torch.from_numpy(np.load(targets))
    torch.nn.functional.cross_entropy(logits.flatten(0, 1), wanted.flatten(), ignore_index=-1).backward()
    for parameter in network.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.grad
    network.save_pretrained(out)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    for name in ("model", "tokens", "out"):
        parser.add_argument(name)
    parser.add_argument("--adapter")
    parser.add_argument("--targets")
    main(**vars(parser.parse_args()))
