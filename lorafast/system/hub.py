"""Files of the Hugging Face hub, by the library huggingface_hub, which keeps what it has fetched in its cache."""
from __future__ import annotations

from typing import Any

from ..errors import LoraFastError, UsageError

PREFIX = "hf:"
PREFERRED = ("q8_0", "f16", "bf16", "q6_k", "q5_k_m", "q4_k_m")
"""Parts of names of GGUF files, of which the first that fits is taken where a repository has several."""


def local_path(name: str) -> str:
    """`hf:org/name[:file]` as the path of a file here, fetched unless the cache has it; any other name as it is.

    UsageError for a name of another shape, LoraFastError for what cannot be fetched, or if huggingface_hub is not
    installed.
    """
    if not name.startswith(PREFIX):
        return name
    repository, _, file = name.removeprefix(PREFIX).partition(":")
    if repository.count("/") != 1:
        raise UsageError(f"{name}: a file on Hugging Face is written hf:ORGANISATION/NAME or "
                         f"hf:ORGANISATION/NAME:FILE.gguf")
    try:
        import huggingface_hub
    except ImportError:
        raise LoraFastError(f"{name}: needs huggingface_hub (pip install 'lorafast[hub]')") from None
    try:
        return huggingface_hub.hf_hub_download(repository, file or _gguf_of(huggingface_hub, repository))
    except LoraFastError:
        raise
    except Exception as error:      # it has dozens, of its own and of the libraries below it
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise LoraFastError(f"{name}: cannot be fetched, and is not in the cache: {reason}") from None


def _gguf_of(hub: Any, repository: str) -> str:
    """The GGUF file of a repository; if that cannot be asked, the one in the cache."""
    try:
        names = hub.HfApi().list_repo_files(repository)
    except Exception:
        names = [file.file_name for cached in hub.scan_cache_dir().repos if cached.repo_id == repository
                 for revision in cached.revisions for file in revision.files]
        if not names:
            raise
    found = sorted(name for name in names if name.lower().endswith(".gguf"))
    if not found:
        raise LoraFastError(f"{PREFIX}{repository}: has no GGUF file; fetch it and convert it (convert_hf_to_gguf.py "
                            "of llama.cpp)")
    return min(found, key=_preference)


def _preference(name: str) -> int:
    return next((place for place, part in enumerate(PREFERRED) if part in name.lower()), len(PREFERRED))
