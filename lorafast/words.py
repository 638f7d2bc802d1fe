"""Words and texts as people are to see them."""
import unicodedata


def count(n: int, singular: str, plural: str = "") -> str:
    """`1 batch`, `2,500 batches`. plural: where it is not the singular with an s."""
    return f"{n:,} {singular if n == 1 else plural or singular + 's'}"


def is_or_are(n: int) -> str:
    return "is" if n == 1 else "are"


def visible(text: str) -> str:
    """`text` with what would steer a terminal shown instead: `\\x1b` for an escape. Line ends and tabs stay."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() or char in "\n\t" or not _steers(char) else _shown(char) for char in text)


def _steers(char: str) -> bool:
    """Control characters, and those that turn round the direction in which text runs."""
    directions = "\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
    return unicodedata.category(char) == "Cc" or char in directions


def _shown(char: str) -> str:
    return char.encode("unicode_escape").decode()
