"""The table of docs/machines.md: what 1 to 64 machines make of a step, by the formula that `plan` has for the network.

    python bench/machines_table.py

A machine computes at the rate given (GFLOP/s in a whole step; bench_train.py tells it of this one), each rank one pass
of 2048 tokens; adapters have rank 16 on the seven matrices of each block.
"""
from __future__ import annotations

import argparse
from dataclasses import dataclass

from geometry import GEOMETRIES, Geometry

from lorafast.planning.sharing import link_of

LORA_R, TOKENS = 16, 2048


@dataclass(frozen=True)
class Job:
    """What is trained, on how many machines and over what. rate: operations a second of a machine."""

    name: str
    geometry: Geometry
    rate: float
    machines: tuple[int, ...]
    networks: tuple[str, ...]

    @property
    def n_params(self) -> int:
        """Of the adapter."""
        return sum(LORA_R * (N + K) for name, N, K in self.geometry.matrices if name.startswith("blk."))

    def rows(self) -> list[str]:
        computing = 4 * self.geometry.n_weights * TOKENS / self.rate
        rows = []
        for n in self.machines:
            cells = []
            for network in self.networks:
                exchange = link_of(network).seconds(4 * self.n_params, n)
                step = computing + exchange
                cells.append(f"{exchange:.2f} s, {computing / step:.1%}, {n * TOKENS / step:.0f} tokens/s")
            rows.append(f"| {self.name} | {n} | {computing:.0f} s | {' | '.join(cells)} |")
        return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--desktop", type=float, default=400, help="GFLOP/s of an office machine, for 7B")
    parser.add_argument("--node", type=float, default=1600, help="GFLOP/s of a node of a cluster, for 70B")
    options = parser.parse_args()
    large = Geometry(8192, 64, 8, 28672, 80, 32000)         # Llama 2 70B
    for job in (Job("7B", GEOMETRIES["7b"], 1e9 * options.desktop, (1, 2, 4, 8, 16), ("1G", "10G")),
                Job("70B", large, 1e9 * options.node, (1, 2, 4, 8, 16, 32, 64), ("10G", "25G"))):
        print(f"| model | machines | a pass | {' | '.join(job.networks)} |\n|---|---|---|---|---|")
        print("\n".join(job.rows()) + "\n")


if __name__ == "__main__":
    main()
