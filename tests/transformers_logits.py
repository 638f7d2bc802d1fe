"""Logits, losses and gradients of transformers and PEFT in float32, from a process of its own."""
from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

HF_NAMES = {"attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm", "attn_q": "self_attn.q_proj",
            "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj",
            "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj"}
IGNORED = -100      # transformers' label of a token that does not count in the loss


def transformers_logits(folder: Path, model: Path, tokens: np.ndarray, adapter: Path | None = None) -> np.ndarray:
    """float32 (n, n_vocab) for tokens int32 (n,), of the GGUF `model` and a PEFT folder.

    `folder` takes the files by which the process is told and answers.
    """
    return _run(folder, model, adapter, input_ids=tokens[None].astype(np.int64))[0]


def transformers_loss(folder: Path, model: Path, rows: Sequence[tuple[np.ndarray, np.ndarray]],
                      adapter: Path | None = None) -> float:
    """transformers' own loss of a batch: its mean over the labels of all rows that count.

    rows: tokens and targets (the token after each, -1 where it does not count), int32 (n,), n as long as the row is.
    They become what a trainer makes of them: padded at their ends to one length, with labels of -100 where nothing
    counts.
    """
    shape = len(rows), 1 + max(len(tokens) for tokens, _ in rows)
    input_ids, attention_mask = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
    labels = np.full(shape, IGNORED, np.int64)              # labels[i] is input_ids[i]: transformers shifts them itself
    for row, (tokens, targets) in enumerate(rows):
        n = len(tokens)
        input_ids[row, :n], input_ids[row, n] = tokens, max(targets[-1], 0)
        attention_mask[row, :n + 1] = 1
        labels[row, 1:n + 1] = np.where(targets >= 0, targets, IGNORED)
    return float(_run(folder, model, adapter, input_ids=input_ids, attention_mask=attention_mask, labels=labels))


def peft_gradients(folder: Path, model: Path, adapter: Path, tokens: np.ndarray, targets: np.ndarray) -> Path:
    """The gradients of the mean cross entropy over targets that are not -1, int32 (rows, ctx) as the tokens, in
    training mode: a PEFT folder like `adapter` with gradients in the place of its values.
    """
    _run(folder, model, adapter, "--gradients", folder / "gradients",
         input_ids=tokens.astype(np.int64), targets=targets.astype(np.int64))
    return folder / "gradients"


def _run(folder: Path, model: Path, adapter: Path | None, *options: object, **inputs: np.ndarray) -> np.ndarray:
    np.savez(folder / "hf_in.npz", **inputs)
    command = [sys.executable, __file__, model, folder / "hf_in.npz", folder / "hf_out.npy", *options]
    command += ["--adapter", adapter] if adapter else []
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}      # it uses lorafast to read the model
    subprocess.run([str(part) for part in command], check=True, stderr=subprocess.DEVNULL, env=environment)
    return np.load(folder / "hf_out.npy")


def network_of(model: str):
    """The GGUF `model` as transformers' LlamaForCausalLM, its weights dequantised to float32."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from lorafast.gguf.reader import open_model
    from lorafast.network.hparams import read_hparams

    gguf = open_model(model)
    hp = read_hparams(gguf)
    config = LlamaConfig(
        vocab_size=hp.n_vocab, hidden_size=hp.n_embd, intermediate_size=hp.n_ff, num_hidden_layers=hp.n_layer,
        num_attention_heads=hp.n_head, num_key_value_heads=hp.n_head_kv, rms_norm_eps=hp.norm_rms_eps,
        tie_word_embeddings=hp.tied, max_position_embeddings=hp.n_ctx_train,
        rope_parameters={"rope_type": "default", "rope_theta": hp.rope_freq_base})
    weights = {}
    for name, tensor in gguf.tensors.items():
        w = tensor.to_float32()
        part = name.split(".")
        if part[0] == "blk":
            # GGUF pairs neighbours in RoPE, transformers the two halves of a head
            if part[2] in ("attn_q", "attn_k"):
                n_head = hp.n_head if part[2] == "attn_q" else hp.n_head_kv
                w = w.reshape(n_head, -1, 2, hp.n_embd).swapaxes(1, 2).reshape(w.shape)
            name = f"model.layers.{part[1]}.{HF_NAMES[part[2]]}.weight"
        else:
            names = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
            name = names[part[0]] + ".weight"
        weights[name] = torch.from_numpy(np.ascontiguousarray(w))
    network = LlamaForCausalLM(config)
    missing, unexpected = network.load_state_dict(weights, strict=False)
    assert not unexpected and set(missing) <= {"lm_head.weight"}, (missing, unexpected)
    network.tie_weights()
    return network


def answer(model: str, adapter: str | None, inputs: Mapping[str, np.ndarray], gradients: str | None) -> np.ndarray:
    """The loss if `inputs` has labels or targets, else the logits of the rows; gradients: the folder to write them
    to."""
    import torch

    network = network_of(model)
    if adapter:
        from peft import PeftModel

        network = PeftModel.from_pretrained(network, adapter, is_trainable=gradients is not None)
    given = {name: torch.from_numpy(array) for name, array in inputs.items()}
    if gradients:
        targets = given.pop("targets")
        loss = torch.nn.functional.cross_entropy(network.train()(**given).logits.flatten(0, 1), targets.flatten(),
                                                 ignore_index=-1)
        loss.backward()
        for parameter in network.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.grad
        network.save_pretrained(gradients)
        return loss.detach().numpy()
    with torch.no_grad():
        output = network.eval()(**given)
    return (output.loss if "labels" in inputs else output.logits).numpy()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    for name in ("model", "inputs", "out"):
        parser.add_argument(name)
    parser.add_argument("--adapter")
    parser.add_argument("--gradients")
    options = parser.parse_args()
    np.save(options.out, answer(options.model, options.adapter, dict(np.load(options.inputs)), options.gradients))
