"""What to say of a name that is none of those there are."""

import difflib
from collections.abc import Iterable

MANY = 30


def hint(name: str, names: Iterable[str]) -> str:
    """Returns the nearest of the names, if one is near, and all of them, unless they are many."""
    names = list(names)
    near = difflib.get_close_matches(name.lower(), names, n=1, cutoff=0.5)
    meant = f"did you mean {near[0]!r}? " if near else ""
    return meant + (
        f"valid: {', '.join(names)}" if len(names) <= MANY else f"{len(names)} are valid"
    )
