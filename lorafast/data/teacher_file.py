"""A teacher's likeliest tokens at each target that counts in some data: a file that `lorafast logits` streams to disk.

MAGIC, the length of a JSON description as uint64 and the description; then for each of n tokens k ids int32, for each k
log-probabilities float16; then of each sample where it begins in the data, int64, and its first token's number, int64.
"""
from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from ..errors import FormatError, LoraFastError
from ..system.atomic import atomic_write
from .samples import Sequences, targets_of

MAGIC = b"lorafast teacher\n"


def vocabulary_digest(metadata: Mapping[str, Any]) -> str:
    """A hash of a model's tokens: models with the same vocabulary can learn from each other."""
    tokens = metadata.get("tokenizer.ggml.tokens", [])
    return hashlib.sha256("\0".join(map(str, tokens)).encode("utf-8", "surrogatepass")).hexdigest()


def counted(samples: Sequences) -> np.ndarray:
    """The number of targets that count in each sample, int64 (S,)."""
    return np.array([np.count_nonzero(targets_of(samples.stored(i)[1:]) >= 0) for i in range(len(samples))], np.int64)


def write_teacher_file(path: str, samples: Sequences, description: dict[str, Any],
                       said: Iterator[tuple[np.ndarray, np.ndarray]]) -> None:
    """said: ids int32 (n, k) and log-probabilities of the samples' tokens that count, some at a time."""
    first = np.concatenate([[0], np.cumsum(counted(samples))])
    text = json.dumps({**description, "n": int(first[-1]), "n_samples": len(samples),
                       "tokens": samples.identity.tokens}).encode()
    with atomic_write(path) as file, tempfile.TemporaryFile(prefix="lorafast-") as log_p:
        file.write(MAGIC + len(text).to_bytes(8, "little") + text)
        for ids, values in said:
            file.write(np.ascontiguousarray(ids, "<i4").data)
            log_p.write(np.ascontiguousarray(values, "<f2").data)
        log_p.seek(0)
        while piece := log_p.read(1 << 20):
            file.write(piece)
        file.write(samples.begin.astype("<i8").tobytes() + first[:-1].astype("<i8").tobytes())


class TeacherFile:
    """Such a file, mapped, for the samples of a run."""

    def __init__(self, path: str, samples: Sequences, metadata: Mapping[str, Any]) -> None:
        """LoraFastError for a file that cannot be read, FormatError for another, LoraFastError for one of another
        vocabulary or of other data."""
        self.path = path
        description, begin = self._description()
        if description["vocabulary"] != vocabulary_digest(metadata):
            raise LoraFastError(f"--distill {path}: {description['model']} has another vocabulary than the model to "
                                "train, so that its tokens mean something else; take a teacher of the same family")
        if description["tokens"] != samples.identity.tokens:
            raise LoraFastError(f"--distill {path}: it was written for other data, or with another template: write it "
                                "for these files with lorafast logits")
        n, self.k, n_samples = description["n"], description["k"], description["n_samples"]
        self.ids = np.memmap(path, "<i4", "r", begin, (n, self.k))
        self.log_p = np.memmap(path, "<f2", "r", begin + 4 * n * self.k, (n, self.k))
        places = np.fromfile(path, "<i8", offset=begin + 6 * n * self.k).reshape(2, n_samples)
        self.first = self._first_of(samples, places, n)

    def _description(self) -> tuple[dict[str, Any], int]:
        try:
            with open(self.path, "rb") as file:
                if file.read(len(MAGIC)) != MAGIC:
                    raise FormatError(f"{self.path}: was not written by lorafast logits")
                size = int.from_bytes(file.read(8), "little")
                description = json.loads(file.read(min(size, 1 << 20)))
                at, end = file.tell(), file.seek(0, 2)
            entries = description["n"] * description["k"]
            if end != at + 6 * entries + 16 * description["n_samples"]:
                raise ValueError
            [description[key] for key in ("vocabulary", "tokens", "model")]
            return description, at
        except OSError as error:
            raise LoraFastError(f"cannot read {self.path}: {error.strerror}") from None
        except (ValueError, KeyError, TypeError):
            raise FormatError(f"{self.path}: is broken or was cut short; write it anew with lorafast logits") from None

    def _first_of(self, samples: Sequences, places: np.ndarray, n: int) -> np.ndarray:
        """The number of each sample's first token, int64 (S,)."""
        i = np.searchsorted(places[0], samples.begin)
        known = i < places.shape[1]
        known[known] = places[0][i[known]] == samples.begin[known]
        ends = np.append(places[1], n)
        if not known.all() or (counted(samples) > ends[i + 1] - ends[i]).any():
            raise LoraFastError(f"--distill {self.path}: it was written with a smaller --ctx; write it with this one")
        return np.asarray(ends[i])

    def of(self, rows: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Ids and log-probabilities float32 of the first `counts` tokens of each of these samples."""
        index = np.concatenate([np.arange(self.first[row], self.first[row] + n) for row, n in zip(rows, counts)])
        return np.ascontiguousarray(self.ids[index]), self.log_p[index].astype(np.float32)
