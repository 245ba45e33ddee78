"""What the book adds to Sphinx, where the built pages cannot show it."""

from cibr_book.pages.rendering import _mark_up_docstring


def test_docstrings_become_markup():
    lines = ["Says `a` of |b|.", "", "    x = |y|", "", "Args:", "    c: as `d|e`."]
    _mark_up_docstring(None, "function", "f", None, None, lines)
    assert lines[0] == "Says ``a`` of \\|b\\|." and lines[-1] == "    c: as ``d|e``."
    assert lines[1:6] == ["::", "", "    x = |y|", "", "Args:"]
