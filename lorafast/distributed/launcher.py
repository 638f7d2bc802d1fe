"""Whether this process is one of several that a launcher of MPI has started: its environment tells, MPI is not asked.

Known are MPICH, Intel MPI and Slurm's pmi2 (PMI_*), Open MPI (OMPI_*) and whatever speaks PMIx.
"""
from __future__ import annotations

import os
from collections.abc import Mapping

SIZES = ("PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")
LOCAL_RANKS = ("MPI_LOCALRANKID", "OMPI_COMM_WORLD_LOCAL_RANK", "MV2_COMM_WORLD_LOCAL_RANK", "SLURM_LOCALID")
SLURM_SIZE = "SLURM_STEP_NUM_TASKS"
"""Tells the size only where Slurm speaks PMIx: else its tasks know nothing of each other."""


def launched_size(environment: Mapping[str, str] = os.environ) -> int:
    """How many processes the launcher has started; 1 without one."""
    names = (*SIZES, SLURM_SIZE) if "PMIX_RANK" in environment else SIZES
    return max((int(environment[name]) for name in names if environment.get(name, "").isdecimal()), default=1)


def local_rank(environment: Mapping[str, str] = os.environ) -> int:
    """Which of the processes on this host this is; 0 without a launcher."""
    return next((int(environment[name]) for name in LOCAL_RANKS if environment.get(name, "").isdecimal()), 0)
