"""Files that the original program wrote (tests/golden, compressed), for tests of the formats and of resuming.

`tinymha`: n_embd 64, 4 heads, n_ff 160, 2 layers, 32000 tokens; seed 1, ctx 64, batch 4, warm-up 5; after 10 and 20
iterations.
"""
import lzma
from pathlib import Path

GOLDEN = Path(__file__).parent / "golden"


def unpack(name: str, folder: Path) -> Path:
    """`tests/golden/<name>.xz`, decompressed into `folder`."""
    path = folder / name
    path.write_bytes(lzma.decompress((GOLDEN / f"{name}.xz").read_bytes()))
    return path
