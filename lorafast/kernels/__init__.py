"""The compiled kernels. Their sources and the porting sheet are in kernels/ at the top of the repository."""
import os

# libgomp's threads spin for milliseconds at the end of a parallel region. Where another program wants their core, that
# costs the thread they wait for its time slice; a short spin bridges the gaps between two kernels as well. Read when
# libgomp loads.
os.environ.setdefault("GOMP_SPINCOUNT", "30000")

from ..errors import UsageError
from . import build_info

_forced = os.environ.get("LORAFAST_ISA")
if _forced and _forced not in build_info.available_isas():
    raise UsageError(f"LORAFAST_ISA is '{_forced}'; this machine runs {', '.join(build_info.available_isas())}")
