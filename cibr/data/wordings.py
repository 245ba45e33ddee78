"""Wordings of a text: the same said in another manner, as `cibr.data.views` shows the same in another look.

With `keywords` a text is what is left without scikit-learn's English stop words, between commas, as the tags of an
archive; a text of nothing else stays as it is.
"""

import re
from collections.abc import Callable

from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS


def _keywords(text: str) -> str:
    words = re.findall(r"[^\W_]+(?:['’-][^\W_]+)*", text)
    return ", ".join(word for word in words if word.lower() not in ENGLISH_STOP_WORDS) or text


WORDINGS: dict[str, Callable[[str], str]] = {"keywords": _keywords}
