"""What the book adds to Sphinx, where the built pages cannot show it."""

import json
from types import SimpleNamespace
from unittest.mock import Mock

from sphinx.config import Config

from cibr_book.pages.html import filled
from cibr_book.pages.rendering import _add_buttons, _GetProject, _mark_up_docstring


def test_buttons_and_the_clone_command_appear_once_an_address_is_given():
    options, address = {}, "https://host/owner/cibr"
    config = Mock(spec=Config, html_theme_options=options, repository_address="")
    _add_buttons(None, config)
    assert options == {}
    config.repository_address = address
    _add_buttons(None, config)
    assert options["repository_url"] == address and "colab_url" in options["launch_buttons"]
    (block,) = _GetProject.run(SimpleNamespace(config=config))
    assert block.astext() == f"git clone {address} cibr && cd cibr"


def test_a_text_cannot_end_the_numbers_of_a_page(tmp_path):
    (tmp_path / "piece.html").write_text('<script id="data">$data</script><p>$said</p>')
    page = filled(str(tmp_path / "piece.py"), {"text": "a</script><b> & $said"}, said="<i>c</i>")
    data, rest = page.removeprefix('<script id="data">').split("</script>")
    assert json.loads(data) == {"text": "a</script><b> & $said"} and rest == "<p><i>c</i></p>"


def test_docstrings_become_markup():
    lines = ["Says `a` of |b|.", "", "    x = |y|", "", "Args:", "    c: as `d|e`."]
    _mark_up_docstring(None, "function", "f", None, None, lines)
    assert lines[0] == "Says ``a`` of \\|b\\|." and lines[-1] == "    c: as ``d|e``."
    assert lines[1:6] == ["::", "", "    x = |y|", "", "Args:"]
