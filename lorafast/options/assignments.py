"""Options of the form NAME=VALUE, which may be given several times."""
from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from ..errors import UsageError
from .declare import Allowed

ASSIGNMENT = Allowed("NAME=VALUE", lambda texts: all("=" in text and not text.startswith("=") for text in texts))


def assignments(texts: Sequence[str]) -> dict[str, str]:
    """The values by name; the last of the same name counts."""
    return dict(text.split("=", 1) for text in texts)


def json_assignments(texts: Sequence[str]) -> dict[str, Any]:
    """The values by name, read as JSON where they are that (`false`, `3`, `[1]`), else as text."""
    return {name: _value(name, text) for name, text in assignments(texts).items()}


def _value(name: str, text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text
    except (ValueError, RecursionError):        # a number of too many digits, too deep a nesting
        raise UsageError(f"{name}: {text[:20]}... is not a value that can be read") from None
