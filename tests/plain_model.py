"""The network once more, as plain as can be: float64, merged weights, T × T attention. `xp` is numpy or torch (for
autograd)."""
from __future__ import annotations

import numpy as np

from lorafast.gguf.reader import GGUFFile
from lorafast.network.hparams import HParams
from lorafast.network.rope import rope_tables


def base_weights(gguf: GGUFFile) -> dict[str, np.ndarray]:
    return {name: tensor.to_float32().astype(np.float64) for name, tensor in gguf.tensors.items()}


def norms_of_adapted(weights: dict, pairs: dict, scale: float, names) -> dict[str, np.ndarray]:
    """c of DoRA for these tensors: the norms of the rows of W + s·Bᵀ A, of the embedding's columns."""
    def norms(name: str) -> np.ndarray:
        A, B = pairs[name]
        return np.linalg.norm(weights[name] + scale * B.T @ A, axis=int(name != "token_embd.weight"))

    return {name: norms(name) for name in names}


def plain_loss(weights: dict, pairs: dict, scale: float, hp: HParams, tokens: np.ndarray, targets: np.ndarray, xp=np,
               magnitudes: dict | None = None, norms: dict | None = None):
    """Mean cross entropy in nats over the targets that are not -1.

    weights  base tensors by name; pairs  (A (r, K), B (r, N)) by name; tokens, targets  (rows, ctx)
    magnitudes, norms  DoRA's m and c by name
    """
    def merged(name: str):
        w = weights[name]
        if name not in pairs:
            return w
        A, B = pairs[name]
        update = scale * (B.T @ A)
        w = w + (update[0] if w.ndim == 1 else update)
        if magnitudes is None or norms is None or name not in magnitudes:
            return w
        gain = magnitudes[name] / norms[name]
        return w * gain if name == "token_embd.weight" else w * gain[:, None]

    def head(name: str):                # on a tied model the pair of token_embd acts on the input only
        return weights["token_embd.weight"] if hp.tied else merged(name)

    def rms_norm(x, name: str):
        return x / ((x**2).mean(-1)[..., None] + hp.norm_rms_eps)**0.5 * merged(name)

    def heads(x, n: int):               # (rows, ctx, n * d) -> (rows, n, ctx, d)
        return x.reshape(rows, ctx, n, -1).swapaxes(1, 2)

    def rope(x):                        # pairs (2j, 2j + 1)
        even, odd = x[..., 0:hp.n_rot:2], x[..., 1:hp.n_rot:2]
        turned = xp.stack([even * cos - odd * sin, even * sin + odd * cos], -1).reshape(*even.shape[:-1], hp.n_rot)
        return xp.concatenate([turned, x[..., hp.n_rot:]], -1)

    def swiglu(h, gate, up, down):
        z = h @ gate
        return (z / (1 + xp.exp(-z)) * (h @ up)) @ down

    def experts(h, W):                  # Mixtral's: all are computed, and all but the best of a token weigh 0
        z = h @ W("ffn_gate_inp")
        p = xp.exp(z - _max(z))
        values, k = z if xp is np else z.detach().numpy(), hp.blocks[0].experts.n_used
        is_chosen = values >= np.sort(values)[..., -k][..., None]
        weight = p * (is_chosen if xp is np else xp.tensor(is_chosen))
        weight = weight / weight.sum(-1)[..., None]
        return sum(weight[..., e, None] * swiglu(h, *(W(f"ffn_{part}_exps", e) for part in ("gate", "up", "down")))
                   for e in range(z.shape[-1]))

    rows, ctx = tokens.shape
    cos, sin = rope_tables(ctx, hp.n_rot, hp.rope_freq_base, hp.rope_freq_scale, _factors(weights))
    mask = np.triu(np.full((ctx, ctx), -1e30), 1)
    if xp is not np:
        cos, sin, mask = (xp.tensor(a, dtype=xp.float64) for a in (cos, sin, mask))
    group = hp.n_head // hp.n_head_kv
    x = merged("token_embd.weight")[tokens]
    for layer in range(hp.n_layer):
        def W(name: str, expert=..., layer: int = layer):
            return merged(f"blk.{layer}.{name}.weight")[expert].T

        h = rms_norm(x, f"blk.{layer}.attn_norm.weight")
        q = rope(heads(h @ W("attn_q"), hp.n_head))
        k = rope(heads(h @ W("attn_k"), hp.n_head_kv))
        v = heads(h @ W("attn_v"), hp.n_head_kv)
        kv_head = [i // group for i in range(hp.n_head)]
        scores = q @ k[:, kv_head].swapaxes(-1, -2) * hp.n_embd_head_k**-0.5 + mask
        p = xp.exp(scores - _max(scores))
        o = (p / p.sum(-1)[..., None]) @ v[:, kv_head]
        x = x + o.swapaxes(1, 2).reshape(rows, ctx, -1) @ W("attn_output")
        h = rms_norm(x, f"blk.{layer}.ffn_norm.weight")
        x = x + (experts(h, W) if f"blk.{layer}.ffn_gate_inp.weight" in weights
                 else swiglu(h, *(W(f"ffn_{part}") for part in ("gate", "up", "down"))))
    logits = rms_norm(x, "output_norm.weight") @ head("output.weight").T
    logits = logits - _max(logits)
    log_p = logits - xp.log(xp.exp(logits).sum(-1))[..., None]
    row, column = np.nonzero(targets >= 0)
    return -log_p[row, column, targets[row, column]].mean()


def _max(x):
    """The maximum of each row, without a gradient."""
    return x.max(-1)[..., None] if isinstance(x, np.ndarray) else x.detach().max(-1).values[..., None]


def _factors(weights: dict):
    factors = weights.get("rope_freqs.weight")
    return None if factors is None else np.asarray(factors, np.float32)
