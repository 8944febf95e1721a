"""Error messages for unknown names."""

import difflib
from collections.abc import Iterable

MAX_LISTED = 40  # names in one message


def check_name(kind: str, name: str, names: Iterable[str], suffix: str = "") -> None:
    """Raises ValueError for an unknown name, with the nearest valid names."""
    if not isinstance(name, str) or name not in names:
        raise ValueError(f"unknown {kind} {name!r}; {hint(str(name), names)}{suffix}")


def hint(name: str, names: Iterable[str]) -> str:
    """Suggests the nearest valid name and lists all names, or the nearest three of a long list."""
    names = list(names)
    is_long = len(names) > MAX_LISTED
    near = difflib.get_close_matches(name.lower(), names, n=3 if is_long else 1, cutoff=0.5)
    suggestion = f"did you mean {' or '.join(map(repr, near))}? " if near else ""
    listed = f"{len(names)} are valid" if is_long else f"valid: {', '.join(names)}"
    return suggestion + listed
