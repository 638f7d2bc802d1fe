"""Which tensors are adapted, and the store that holds their pairs of low-rank matrices.

For a base tensor W of shape (N, K) the pair is A (r, K) and B, stored transposed as (r, N): both are a few rows of long
vectors. With s = alpha / r:

    linear      y     = x·Wᵀ + s·(x·Aᵀ)·B
    norm        g_eff = g + s·Σ_k B[k, 0]·A[k]         gain g of shape (C,): A (r, C), B (r, 1)
    embedding   E_eff[v] = E[v] + s·Σ_k B[k, v]·A[k]   table E of shape (V, C): A (r, C), B (r, V)

With DoRA a pair of a matrix has a third part, the magnitude m: see dora.py.

Source: Hu et al., LoRA (2021). Tensor set, order and initialisation are those of llama.cpp's llama-finetune of July
2024. It trained with s = 1 whatever alpha was, so that alpha != r trained one model and deployed another; here alpha
/ r holds in training too, the same for every pair whatever the pair's own rank.
"""
from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import numpy as np

from ..errors import UsageError
from ..gguf.roles import EXPERTS_ARE_FROZEN, GROUPS, ROLES, Kind, file_order, is_of_experts, role_of, split_name
from ..rng import MT19937, NormalDistribution

Pair = tuple[np.ndarray, np.ndarray]
"""A (r, K) and B (r, N), float32."""


@dataclass(frozen=True)
class PairSpec:
    """One adapted tensor: the base tensor's `name`, its shape (n_out, n_in) = (N, K); a norm's gain is (1, C).

    n_magnitudes  with DoRA, values of what the tensor puts out: N of a linear layer, C of the embedding; 0 without
    """

    name: str
    kind: Kind
    n_in: int
    n_out: int
    rank: int
    n_magnitudes: int = 0

    @property
    def role(self) -> str:
        return split_name(self.name)[1]

    @property
    def n_params(self) -> int:
        return self.rank * (self.n_in + self.n_out) + self.n_magnitudes


def default_ranks(r: int) -> dict[str, int]:
    """Rank by role as llama-finetune chose it: `r` for matrices, 1 for norms."""
    return {name: 1 if role.kind == "norm" else r for name, role in ROLES.items()}


def specs_for(shapes: Mapping[str, Sequence[int]], ranks: Mapping[str, int],
              targets: Iterable[str] | None = None, *, dora: bool = False) -> tuple[PairSpec, ...]:
    """The pairs to train, in llama-finetune's order.

    shapes   shape of each base tensor by name, NumPy order; what a model lacks (`output.weight` where the embedding is
             tied) is simply not adapted
    ranks    rank by role; 0 leaves the role out
    targets  None for every tensor that can be adapted, or groups (`attn`), roles (`attn_q`) and tensor names, `*` and
             `?` allowed in the latter (`blk.1?.ffn_*`), `.weight` optional. A group may be empty beside others: where
             all feed-forward matrices are experts', `attn,ffn` means attention
    dora     with magnitudes for every matrix

    Raises UsageError for a target that fits no tensor, a negative rank, or nothing left to train.
    """
    names = sorted((name for name in shapes if split_name(name)[1]), key=file_order)
    if targets is not None:
        targets = tuple(targets)
        for target in targets:
            is_one_of_several = target in GROUPS and len(targets) > 1
            if not is_one_of_several and not any(_fits(target, name) for name in names):
                raise UsageError(_no_such_target(target, names))
        names = [name for name in names if any(_fits(target, name) for target in targets)]
    for role, rank in ranks.items():
        if rank < 0:
            raise UsageError(f"the rank of {role} is {rank}; use 0 to leave it out, or a positive number")
    specs = tuple(_spec(name, tuple(shapes[name]), ranks[split_name(name)[1]], dora)
                  for name in names if ranks[split_name(name)[1]] > 0)
    if not specs:
        raise UsageError("nothing to train: every rank is 0; raise --lora-r or a --rank-* option")
    return specs


def _fits(target: str, name: str) -> bool:
    role = split_name(name)[1]
    return target == role or role in GROUPS.get(target, ()) or any(
        fnmatchcase(name, pattern) for pattern in (target, f"{target}.weight"))


def _no_such_target(target: str, names: Sequence[str]) -> str:
    if is_of_experts(target) or target in GROUPS:        # the feed-forward's, all of whose matrices are experts'
        return f"target '{target}': {EXPERTS_ARE_FROZEN}"
    if target.removesuffix(".weight") == "output":
        return "target 'output': this model has no output.weight (its embedding is tied); leave the target out"
    roles = [role for role in ROLES if any(split_name(name)[1] == role for name in names)]
    return f"target '{target}' fits no tensor of this model; use {', '.join(roles)}, or a name such as {names[-1]}"


def _spec(name: str, shape: tuple[int, ...], rank: int, dora: bool) -> PairSpec:
    if len(shape) == 1:
        return PairSpec(name, "norm", shape[0], 1, rank)
    n_out, n_in = shape
    kind = role_of(name).kind
    return PairSpec(name, kind, n_in, n_out, rank, (n_in if kind == "embedding" else n_out) if dora else 0)


class Adapter:
    """All pairs of an adapter, and DoRA's magnitudes, in one flat float32 store: the optimiser sees a single vector.

    specs   the pairs, in llama-finetune's order
    alpha, r  the scale is alpha / r for every pair
    params  (n_params,) float32, zero until `initialise` or a file fills it

    Within a store the pairs follow in order, A before B, except that the B of every norm stands behind them, and the
    magnitudes at the end: those are the parameters that weight decay can leave out (`n_decayed`), so a step of AdamW is
    at most two contiguous calls.
    """

    def __init__(self, specs: Sequence[PairSpec], alpha: float, r: int) -> None:
        self.specs = tuple(specs)
        self.alpha = alpha
        self.r = r
        self.n_params = sum(spec.n_params for spec in self.specs)
        self.n_norm_b = sum(spec.rank for spec in self.specs if spec.kind == "norm")
        self.n_magnitudes = sum(spec.n_magnitudes for spec in self.specs)
        self.params = _zeros(self.n_params)
        self.pairs = self.views(self.params)
        self.magnitudes = self.magnitude_views(self.params)

    @property
    def scale(self) -> float:
        """s = alpha / r."""
        return self.alpha / self.r

    def A(self, name: str) -> np.ndarray:
        """A (r, K) of the base tensor `name`; a view."""
        return self.pairs[name][0]

    def B(self, name: str) -> np.ndarray:
        """B (r, N) of the base tensor `name`; a view."""
        return self.pairs[name][1]

    def __contains__(self, name: str) -> bool:
        return name in self.pairs

    def views(self, store: np.ndarray) -> dict[str, Pair]:
        """(A, B) by base tensor as views of `store`, which is laid out like `params`."""
        return {spec.name: (store[a].reshape(spec.rank, spec.n_in), store[b].reshape(spec.rank, spec.n_out))
                for spec, a, b in self.spans()}

    def magnitude_views(self, store: np.ndarray) -> dict[str, np.ndarray]:
        """DoRA's magnitudes (n_magnitudes of the spec,) by base tensor, where there are any, as views of `store`."""
        views, at = {}, self.n_params - self.n_magnitudes
        for spec in self.specs:
            if spec.n_magnitudes:
                views[spec.name] = store[at:at + spec.n_magnitudes]
                at += spec.n_magnitudes
        return views

    def spans(self) -> Iterator[tuple[PairSpec, slice, slice]]:
        """Where in a store A and B of each pair lie."""
        at, norm_b_at = 0, self.n_params - self.n_magnitudes - self.n_norm_b
        for spec in self.specs:
            a = slice(at, at + spec.rank * spec.n_in)
            if spec.kind == "norm":
                b = slice(norm_b_at, norm_b_at + spec.rank)
                at, norm_b_at = a.stop, b.stop
            else:
                b = slice(a.stop, a.stop + spec.rank * spec.n_out)
                at = b.stop
            yield spec, a, b

    def n_decayed(self, decay_min_ndim: int) -> int:
        """How many parameters, from the front of the store, belong to tensors with at least so many dimensions.

        Dimensions are counted as ggml does, without trailing ones: B of a norm, ne [r, 1], has one, all others two.
        Magnitudes never decay: it would draw them to 0, not to where they began.
        """
        of_pairs = self.n_params - self.n_magnitudes
        if decay_min_ndim <= 1:
            return of_pairs
        return of_pairs - self.n_norm_b if decay_min_ndim == 2 else 0

    def initialise(self, seed: int) -> None:
        """A := clamp(z, -1, 1) / sqrt(r + K) with z ~ N(0, 1); B := 0, so that training starts at the base model.
        Magnitudes are left to dora.initialise, which knows the weights.

        The draws are llama-finetune's: one mt19937 and one normal distribution for all A in order, within an A the rank
        fastest. For the full set of tensors the same seed gives the same bits.
        """
        normal = NormalDistribution(MT19937(seed))
        for spec in self.specs:
            a, b = self.pairs[spec.name]
            scale = np.float32(1) / np.sqrt(np.float32(spec.rank + spec.n_in))
            z = normal.draw(a.size).reshape(spec.n_in, spec.rank)
            a[:] = (scale * np.clip(z, -1, 1)).T
            b[:] = 0


class Gradients:
    """The gradients of an adapter's parameters, laid out like them; zero at first, and added to by each pass.

    flat  (n_params,) float32
    pairs, magnitudes  views of it by base tensor
    """

    def __init__(self, adapter: Adapter) -> None:
        self.flat = _zeros(adapter.n_params)
        self.pairs = adapter.views(self.flat)
        self.magnitudes = adapter.magnitude_views(self.flat)

    def dA(self, name: str) -> np.ndarray:
        """Gradient of adapter.A(name), same shape; a view."""
        return self.pairs[name][0]

    def dB(self, name: str) -> np.ndarray:
        """Gradient of adapter.B(name), same shape; a view."""
        return self.pairs[name][1]

    def clear(self) -> None:
        self.flat.fill(0)


class Moments:
    """Adam's first and second moments m and v of an adapter's parameters, (n_params,) float32, laid out like them."""

    def __init__(self, adapter: Adapter) -> None:
        self.m, self.v = _zeros(adapter.n_params), _zeros(adapter.n_params)


class Ranks:
    """The widest pairs of each role, over all blocks: what arrays that blocks use in turn must hold."""

    def __init__(self, adapter: Adapter) -> None:
        self._ranks: dict[str, int] = {}
        for spec in adapter.specs:
            self._ranks[spec.role] = max(spec.rank, self._ranks.get(spec.role, 0))
        self._with_gains = {spec.role for spec in adapter.specs if spec.n_magnitudes}

    def rank(self, role: str) -> int:
        """The highest rank of that role's pairs; 0 without any."""
        return self._ranks.get(role, 0)

    def by_role(self) -> dict[str, int]:
        """The highest rank of each role that has pairs."""
        return dict(self._ranks)

    def has_gain(self, role: str) -> bool:
        """Whether a tensor of that role has DoRA's magnitudes."""
        return role in self._with_gains


def _zeros(n: int) -> np.ndarray:
    """`n` float32 zeros that begin on a cache line (64 bytes), so that vector loads don't straddle two.

    The system hands out the pages when they are first written: a store that training never touches costs nothing.
    """
    padded = np.zeros(n + 16, np.float32)
    start = -padded.ctypes.data % 64 // 4
    return padded[start:start + n]
