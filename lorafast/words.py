"""Numbers with the nouns that they count."""


def count(n: int, singular: str, plural: str = "") -> str:
    """`1 batch`, `2,500 batches`. plural: where it is not the singular with an s."""
    return f"{n:,} {singular if n == 1 else plural or singular + 's'}"
