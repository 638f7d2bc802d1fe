"""Every kernel but the products with frozen weights: against its NumPy twin, and against memory or the float32 peak."""
from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import numpy as np
from checks import check
from machine import F32_PEAK, Peaks
from models import random_blocks
from timing import alternate, stopwatch, summary

from lorafast.gguf.types import GGMLType
from lorafast.network.rope import rope_tables

Arguments = dict[str, Any]

CHECKED_ROWS = 48
LIMIT = 1e-11       # of the NMSE; the ops are tested more sharply in tests/kernels
RANK = 4


@dataclass(frozen=True)
class Op:
    """A kernel and the arguments it is timed with.

    make        rows -> all arguments but n_threads; what the kernel writes is among them
    rows        that it is timed with: arrays together far larger than the caches, where memory is the limit
    out         arguments that it overwrites
    gradients   arguments that it adds to
    changed     arguments that it reads and replaces; put back before each repeat
    read        arguments that it reads
    peak        the yardstick: `memory scale` where results go to arrays of their own, `memory update` where most are
                changed in place, `memory read`; or `f32`, and then `operations` of the arguments are counted
    label       what sets it apart from other entries of the same kernel
    """

    module: str
    name: str
    make: Callable[[int], Arguments]
    rows: int
    read: tuple[str, ...]
    peak: str
    out: tuple[str, ...] = ()
    gradients: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()
    operations: Callable[[Arguments], float] | None = None
    label: str = ""

    @property
    def kernel(self) -> Callable:
        return getattr(importlib.import_module(f"lorafast.kernels.{self.module}"), self.name)

    @property
    def twin(self) -> Callable:
        return getattr(importlib.import_module(f"lorafast.reference.{self.module}"), self.name)

    def bytes_moved(self, arguments: Arguments) -> int:
        """Each array read and written once; what is added to or changed is both."""
        once, twice = self.read + self.out, self.gradients + self.changed
        return sum(arguments[name].nbytes for name in once) + 2 * sum(arguments[name].nbytes for name in twice)


RNG = np.random.default_rng(0)


def normal(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape, dtype=np.float32)


def zeros(*shape: int) -> np.ndarray:
    return np.full(shape, 0, np.float32)            # not np.zeros: its pages would first be handed out while timed


def random_ints(end: int, T: int) -> np.ndarray:
    return RNG.integers(0, end, T, dtype=np.int32)


# The arguments. C, F and V are those of a 7b model.
C, F, V = 4096, 11008, 32000


def norm_forward(T: int) -> Arguments:
    return dict(y=zeros(T, C), rstd=zeros(T), x=normal(T, C), gain=normal(C), eps=1e-5)


def norm_backward(T: int) -> Arguments:
    x = normal(T, C)
    rstd = (1 / np.sqrt(np.mean(x**2, axis=1) + 1e-5)).astype(np.float32)
    return dict(dx=zeros(T, C), dgain=zeros(C), dy=normal(T, C), x=x, gain=normal(C), rstd=rstd)


def norm_backward_of_x(T: int) -> Arguments:
    return norm_backward(T) | dict(dgain=None)


def layer_norm_forward(T: int) -> Arguments:
    return dict(y=zeros(T, C), mean=zeros(T), rstd=zeros(T), x=normal(T, C), gain=normal(C), bias=normal(C), eps=1e-5)


def layer_norm_backward(T: int) -> Arguments:
    x = normal(T, C)
    mean, rstd = x.mean(axis=1), 1 / np.sqrt(x.var(axis=1) + np.float32(1e-5))
    return dict(dx=zeros(T, C), dgain=None, dy=normal(T, C), x=x, gain=normal(C), mean=mean, rstd=rstd)


def rope(T: int) -> Arguments:
    cos, sin = rope_tables(T, 128, 10000.0)
    return dict(y=zeros(T, C), x=normal(T, C), cos=cos, sin=sin, positions=np.arange(T, dtype=np.int32), n_head=32,
                interleaved=True)


def gated_forward(T: int) -> Arguments:
    return dict(h=zeros(T, F), gate=normal(T, F), up=normal(T, F))


def gated_in_place(T: int) -> Arguments:
    gate, up = normal(T, F), normal(T, F)
    return dict(dgate=gate, dup=up, dh=normal(T, F), gate=gate, up=up)


def activation_forward(T: int) -> Arguments:
    return dict(y=zeros(T, F), x=normal(T, F))


def activation_in_place(T: int) -> Arguments:
    x = normal(T, F)
    return dict(dx=x, dy=normal(T, F), x=x)


def loss_forward(T: int) -> Arguments:
    return dict(loss=zeros(T), logits=normal(T, V), targets=random_ints(V, T), floor=0.0, soft_cap=0.0)


def loss_forward_backward(T: int) -> Arguments:
    return dict(loss=zeros(T), logits=normal(T, V), targets=random_ints(V, T), dloss=normal(T), floor=0.0,
                soft_cap=0.0)


def capped_loss(T: int) -> Arguments:
    return loss_forward_backward(T) | dict(soft_cap=30.0)


def gated_conv_forward(T: int) -> Arguments:
    return dict(y=zeros(T, C), b=normal(T, C), c=normal(T, C), x=normal(T, C), taps=normal(3, C),
                begin=np.array([0, T], np.int32))


def gated_conv_backward(T: int) -> Arguments:
    inputs = gated_conv_forward(T)
    return dict(db=inputs["b"], dc=inputs["c"], dx=inputs["x"], dy=normal(*inputs.pop("y").shape), **inputs)


def silu_conv_forward(T: int) -> Arguments:
    return dict(y=zeros(T, C), x=normal(T, C), taps=normal(4, C), begin=np.array([0, T], np.int32))


def silu_conv_backward(T: int) -> Arguments:
    inputs = silu_conv_forward(T)
    return dict(dx=inputs["x"], dy=normal(*inputs.pop("y").shape), **inputs)


def loss_piece_forward(T: int) -> Arguments:
    return dict(max=zeros(T), sum=np.ones(T), chosen=zeros(T), logits=normal(T, V), targets=random_ints(V, T),
                soft_cap=0.0)


def loss_piece_backward(T: int) -> Arguments:
    return dict(logits=normal(T, V), max=zeros(T), sum=np.full(T, V / 2.0), targets=random_ints(V, T),
                dloss=normal(T), floor=0.0, soft_cap=0.0)


def loss_of_pieces(T: int) -> Arguments:
    return dict(loss=zeros(T), max=normal(T), sum=np.full(T, V / 2.0), chosen=zeros(T), floor=0.0)


def adam(T: int) -> Arguments:
    n = T * C
    return dict(param=normal(n), m=normal(n), v=normal(n)**2, grad=normal(n), grad_scale=0.5, beta1=0.9,
                beta2=0.999, a_t=1e-4, c_t=2.0, eps=1e-8, decay=1e-5)


def embedding(T: int) -> Arguments:
    weight = random_blocks(RNG, GGMLType.Q8_0, T, C)
    return dict(y=zeros(T, C), tokens=RNG.permutation(T).astype(np.int32), weight=weight, type=int(GGMLType.Q8_0))


def dequantized(T: int) -> Arguments:
    return dict(out=zeros(T, C), data=random_blocks(RNG, GGMLType.Q8_0, T, C), type=int(GGMLType.Q8_0))


def lora_forward(T: int) -> Arguments:
    return dict(h=zeros(T, RANK), x=normal(T, C), A=normal(RANK, C), scale=1.0)


def lora_backward(T: int) -> Arguments:
    return dict(c=zeros(T, RANK), dA=zeros(RANK, C), dB=zeros(RANK, C), dy=normal(T, C), x=normal(T, C),
                B=normal(RANK, C), h=normal(T, RANK), scale=1.0)


def dora_forward(T: int) -> Arguments:
    return dict(y=zeros(T, C), out=zeros(T, C), z=normal(T, C), gain=normal(C), residual=normal(T, C))


def dora_backward(T: int) -> Arguments:
    return dict(dz=zeros(T, C), dm=zeros(C), dy=normal(T, C), y=normal(T, C), m=normal(C), gain=normal(C))


def attention_forward(T: int, H: int, HKV: int, D: int, window: int = 0, soft_cap: float = 0.0) -> Arguments:
    whole = np.array([0, T], np.int32)
    return dict(o=zeros(T, H * D), lse=zeros(T, H), q=normal(T, H * D), k=normal(T, HKV * D), v=normal(T, HKV * D),
                sinks=None, q_begin=whole, k_begin=whole, scale=D**-0.5, window=window, soft_cap=soft_cap, n_head=H,
                n_head_kv=HKV)


def attention_backward(T: int, H: int, HKV: int, D: int, window: int = 0, soft_cap: float = 0.0) -> Arguments:
    arguments = attention_forward(T, H, HKV, D, window, soft_cap)
    del arguments["sinks"]
    importlib.import_module("lorafast.kernels.attention").attention_forward(**arguments, sinks=None, n_threads=2)
    inputs = {name: arguments.pop(name) for name in ("q", "k", "v", "o", "lse")}
    return dict(dq=zeros(T, H * D), dk=zeros(T, HKV * D), dv=zeros(T, HKV * D), do=normal(T, H * D),
                **inputs, **arguments)


def delta_net_inputs(T: int, HK: int, HV: int, D: int) -> Arguments:
    q, k = normal(T, HK, D), normal(T, HK, D)
    k /= np.linalg.norm(k, axis=-1, keepdims=True)
    return dict(q=q.reshape(T, -1), k=k.reshape(T, -1), v=normal(T, HV * D), g=-normal(T, HV)**2,
                beta=RNG.random((T, HV), np.float32), begin=np.array([0, T], np.int32), n_head_k=HK)


def delta_net_forward(T: int, *heads: int) -> Arguments:
    inputs = delta_net_inputs(T, *heads)
    return dict(o=zeros(*inputs["v"].shape), state=None, **inputs)


def delta_net_backward(T: int, *heads: int) -> Arguments:
    inputs = delta_net_inputs(T, *heads)
    gradients = {f"d{name}": zeros(*inputs[name].shape) for name in ("q", "k", "v", "g", "beta")}
    return dict(do=normal(*inputs["v"].shape), **gradients, **inputs)


def delta_products(square: int, chunked: int) -> Callable[[Arguments], float]:
    """Operations of so many products of T × D with D × D of each head of values, and of T × 64 with 64 × D whose left
    side is a triangle."""
    def operations(a: Arguments) -> float:
        T, width = a["v"].shape
        D = width // a["g"].shape[1]
        return 2 * T * width * (square * D + chunked * 32)
    return operations


def causal_products(n: int) -> Callable[[Arguments], float]:
    """Operations of n products of T × D with D × T of each head, as many of them as mask and window leave."""
    def operations(a: Arguments) -> float:
        T, width = a["q"].shape
        window = min(a["window"] or T, T)
        return 2 * n * (T * window - window**2 / 2) * width
    return operations


GATED = {"read": ("gate", "up"), "out": ("h",)}
GATED_BACKWARD = {"read": ("dh",), "changed": ("dgate", "dup")}
ACTIVATION = {"read": ("x",), "out": ("y",)}
ACTIVATION_BACKWARD = {"read": ("dy",), "changed": ("dx",)}

OPS = [
    Op("rms_norm", "rms_norm_forward", norm_forward, 4096, ("x",), "memory scale", out=("y",)),
    Op("rms_norm", "rms_norm_backward", norm_backward, 4096, ("dy", "x"), "memory update", gradients=("dx", "dgain")),
    Op("rms_norm", "rms_norm_backward", norm_backward_of_x, 4096, ("dy", "x"), "memory update", gradients=("dx",),
       label="gain frozen"),
    Op("rope", "rope_forward", rope, 4096, ("x", "cos", "sin"), "memory scale", out=("y",)),
    Op("layer_norm", "layer_norm_forward", layer_norm_forward, 4096, ("x",), "memory scale", out=("y",)),
    Op("layer_norm", "layer_norm_backward", layer_norm_backward, 4096, ("dy", "x"), "memory update", gradients=("dx",),
       label="gain frozen"),
    Op("swiglu", "swiglu_forward", gated_forward, 2048, peak="memory scale", **GATED),
    Op("swiglu", "swiglu_backward", gated_in_place, 2048, peak="memory update", **GATED_BACKWARD),
    Op("swiglu", "geglu_forward", gated_forward, 2048, peak="memory scale", **GATED),
    Op("swiglu", "geglu_backward", gated_in_place, 2048, peak="memory update", **GATED_BACKWARD),
    Op("swiglu", "reglu2_forward", gated_forward, 2048, peak="memory scale", **GATED),
    Op("swiglu", "reglu2_backward", gated_in_place, 2048, peak="memory update", **GATED_BACKWARD),
    Op("swiglu", "clamped_swiglu_forward", gated_forward, 2048, peak="memory scale", **GATED),
    Op("swiglu", "clamped_swiglu_backward", gated_in_place, 2048, peak="memory update", **GATED_BACKWARD),
    Op("swiglu", "glu_forward", gated_forward, 2048, peak="memory scale", **GATED),
    Op("swiglu", "glu_backward", gated_in_place, 2048, peak="memory update", **GATED_BACKWARD),
    Op("activation", "gelu_forward", activation_forward, 2048, peak="memory scale", **ACTIVATION),
    Op("activation", "gelu_backward", activation_in_place, 2048, peak="memory update", **ACTIVATION_BACKWARD),
    Op("activation", "relu_squared_forward", activation_forward, 2048, peak="memory scale", **ACTIVATION),
    Op("activation", "relu_squared_backward", activation_in_place, 2048, peak="memory update", **ACTIVATION_BACKWARD),
    Op("short_conv", "gated_conv_forward", gated_conv_forward, 4096, ("b", "c", "x"), "memory scale", out=("y",)),
    Op("short_conv", "gated_conv_backward", gated_conv_backward, 4096, ("dy",), "memory update",
       changed=("db", "dc", "dx")),
    Op("short_conv", "silu_conv_forward", silu_conv_forward, 4096, ("x",), "memory scale", out=("y",)),
    Op("short_conv", "silu_conv_backward", silu_conv_backward, 4096, ("dy",), "memory update", changed=("dx",)),
    Op("cross_entropy", "cross_entropy_forward", loss_forward, 1024, ("logits",), "memory read", out=("loss",)),
    Op("cross_entropy", "cross_entropy_forward_backward", loss_forward_backward, 1024, (), "memory update",
       out=("loss",), changed=("logits",)),
    Op("cross_entropy", "cross_entropy_forward_backward", capped_loss, 1024, (), "memory update", out=("loss",),
       changed=("logits",), label="soft cap"),
    Op("cross_entropy", "cross_entropy_piece_forward", loss_piece_forward, 1024, ("logits",), "memory read",
       changed=("max", "sum", "chosen")),
    Op("cross_entropy", "cross_entropy_piece_loss", loss_of_pieces, 1024, ("sum",), "memory scale", out=("loss",)),
    Op("cross_entropy", "cross_entropy_piece_backward", loss_piece_backward, 1024, (), "memory update",
       changed=("logits",)),
    Op("adam", "adam_step", adam, 4096, ("grad",), "memory update", changed=("param", "m", "v")),
    Op("adam", "sum_of_squares", lambda T: dict(x=normal(T * C)), 8192, ("x",), "memory read"),
    Op("embedding", "embedding_forward", embedding, 8192, ("weight",), "memory scale", out=("y",)),
    Op("embedding", "dequantize_rows", dequantized, 8192, ("data",), "memory scale", out=("out",)),
    Op("lora", "lora_forward", lora_forward, 4096, ("x", "A"), "memory read", out=("h",)),
    Op("lora", "lora_backward", lora_backward, 4096, ("x", "dy", "B"), "memory read", out=("c",),
       gradients=("dA", "dB")),
    Op("dora", "dora_forward", dora_forward, 4096, ("z", "residual"), "memory scale", out=("y", "out")),
    Op("dora", "dora_backward", dora_backward, 4096, ("dy", "y"), "memory scale", out=("dz",), gradients=("dm",)),
]


def attention_ops(T: int, H: int, HKV: int, D: int, window: int = 0, soft_cap: float = 0.0) -> list[Op]:
    label = f"T={T} H={H} HKV={HKV} D={D}" + f" window={window}" * (window > 0) + f" cap={soft_cap:g}" * (soft_cap > 0)
    sizes = H, HKV, D, window, soft_cap
    return [
        Op("attention", "attention_forward", lambda rows: attention_forward(rows, *sizes), T, ("q", "k", "v"), "f32",
           out=("o", "lse"), operations=causal_products(2), label=label),
        Op("attention", "attention_backward", lambda rows: attention_backward(rows, *sizes), T,
           ("q", "k", "v", "o", "lse", "do"), "f32", out=("dq", "dk", "dv"), operations=causal_products(5),
           label=label),
    ]


def delta_net_ops(T: int, HK: int, HV: int, D: int) -> list[Op]:
    label, read = f"T={T} HK={HK} HV={HV} D={D}", ("q", "k", "v", "g", "beta")
    return [
        Op("delta_net", "delta_net_forward", lambda rows: delta_net_forward(rows, HK, HV, D), T, read, "f32",
           out=("o",), operations=delta_products(3, 4), label=label),
        Op("delta_net", "delta_net_backward", lambda rows: delta_net_backward(rows, HK, HV, D), T, (*read, "do"), "f32",
           out=("dq", "dk", "dv", "dg", "dbeta"), operations=delta_products(8, 12), label=label),
    ]


def ops(full: bool) -> list[Op]:
    heads: list[tuple] = [(512, 12, 12, 64), (2048, 32, 4, 64), (4096, 8, 2, 64), (4096, 8, 2, 64, 512),
                          (4096, 8, 8, 128), (8192, 8, 2, 64), (8192, 8, 2, 64, 1024)]
    if full:
        heads += [(T, *shape) for T in (64, 4096) for shape in ((12, 12, 64), (32, 4, 64), (32, 32, 128))]
        heads += [(2048, 32, 4, 64, 0, 50.0)]
    return [*OPS, *(op for shape in heads for op in attention_ops(*shape)), *delta_net_ops(4096, 8, 8, 128)]


def bench_ops(ops: Sequence[Op], isas: Sequence[str], threads: Sequence[int], peaks: Peaks,
              repeats: int) -> Iterator[dict]:
    """A row for each op, ISA and number of threads."""
    for op in ops:
        arguments = op.make(op.rows)
        before = {name: arguments[name].copy() for name in op.changed}
        moved = op.bytes_moved(arguments)
        for isa in isas:
            os.environ["LORAFAST_ISA"] = isa                # the kernels look at each call
            for n in threads:
                error = compare_with_twin(op, n)

                def restored() -> float:
                    for name, value in before.items():
                        arguments[name][...] = value
                    return run()

                run = stopwatch(lambda: op.kernel(**arguments, n_threads=n))
                seconds = alternate({"lorafast": restored}, repeats=repeats)["lorafast"]
                gb_per_s = moved / median(seconds) / 1e9
                row = {"op": op.name, "label": op.label, "rows": op.rows, "threads": n, "isa": isa, "nmse": error,
                       **summary(seconds), "gb_per_s": gb_per_s}
                if op.operations:
                    row |= {"gops": op.operations(arguments) / median(seconds) / 1e9, "peak": F32_PEAK[isa]}
                    row["percent_of_peak"] = 100 * row["gops"] / peaks[row["peak"]][str(n)]
                else:
                    row |= {"peak": op.peak, "percent_of_peak": 100 * gb_per_s / peaks[op.peak][str(n)]}
                yield row


def compare_with_twin(op: Op, n_threads: int) -> float:
    """Largest NMSE of what the kernel writes against the twin in float64, on a few rows."""
    arguments = op.make(min(op.rows, CHECKED_ROWS))
    exact = {name: value.astype(np.float64) if isinstance(value, np.ndarray) and value.dtype == np.float32 else value
             for name, value in arguments.items()}
    got, wanted = op.kernel(**arguments, n_threads=n_threads), op.twin(**exact, n_threads=1)
    pairs = [(arguments[name], exact[name]) for name in op.out + op.gradients + op.changed]
    if not pairs:
        pairs = [(np.array(got), np.array(wanted))]
    return max(check(f"{op.name} {op.label}", *pair, LIMIT) for pair in pairs)
