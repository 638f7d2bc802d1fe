"""The merge loop that both kinds of tokenizer share.

Sources: Sennrich et al. 2016, "Neural Machine Translation of Rare Words with Subword Units" (byte-pair encoding);
Kudo and Richardson 2018, "SentencePiece", section 3.1 (merging with a priority queue in O(n log n)).
"""
from __future__ import annotations

from collections.abc import Callable, Sequence
from heapq import heappop, heappush


def merge(symbols: Sequence[str], rank: Callable[[str, str], float | None]) -> list[str]:
    """Joins neighbours until no pair has a rank, always the pair of lowest rank first and the leftmost among equals.

    symbols: what cannot be split further (characters, or bytes written as characters)
    rank:    rank of joining (left, right), None where the vocabulary does not join them
    Returns the pieces left, in order; joined together they are the symbols.
    """
    pieces = list(symbols)
    end = len(pieces)
    before = list(range(-1, end - 1))    # neighbours, as piece indices: a joined piece stays at its left part's place
    after = list(range(1, end + 1))
    queue: list[tuple[float, int, int, int]] = []

    def offer(left: int, right: int) -> None:
        if left >= 0 and right < end:
            pair_rank = rank(pieces[left], pieces[right])
            if pair_rank is not None:
                heappush(queue, (pair_rank, left, right, len(pieces[left]) + len(pieces[right])))

    for left in range(end - 1):
        offer(left, left + 1)
    while queue:
        _, left, right, length = heappop(queue)
        # Pieces only grow until they are joined to the left and become empty. So the pair is still the one that was
        # offered if and only if neither is empty and the length is the same.
        if not pieces[left] or not pieces[right] or len(pieces[left]) + len(pieces[right]) != length:
            continue
        pieces[left] += pieces[right]
        pieces[right] = ""
        after[left] = after[right]
        if after[left] < end:
            before[after[left]] = left
        offer(before[left], left)
        offer(left, after[left])
    return [piece for piece in pieces if piece]
