"""Help with a mistyped name: the nearest known one, worded for the end of an error's sentence."""

import difflib
from collections.abc import Iterable


def nearest(name: str, known: Iterable[str]) -> str:
    """Returns ", did you mean 'x'?" with the known name that is nearest, or "" if none is near.

    Examples:
        >>> nearest("flickr8", ["flickr8k", "glyphs"])
        ", did you mean 'flickr8k'?"
        >>> nearest("photos", ["flickr8k", "glyphs"])
        ''
    """
    by_lower_case = {candidate.lower(): candidate for candidate in known}
    found = difflib.get_close_matches(name.lower(), by_lower_case, n=1)
    return f", did you mean {by_lower_case[found[0]]!r}?" if found else ""
