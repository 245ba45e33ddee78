"""What the book adds to Sphinx, where the built pages cannot show it."""

import json
from types import SimpleNamespace

from sphinx.config import Config

from cibr_book.pages.html import filled
from cibr_book.pages.rendering import _GetProject, add_addresses, mark_up_docstring


def configured(**values):
    config = Config({}, {"html_theme_options": {"launch_buttons": {"thebe": False}}} | values)
    texts = ["repository_address", "doi", "html_baseurl", "ogp_site_url", "ogp_image"]
    for name, default in {"html_theme_options": {}, **dict.fromkeys(texts, "")}.items():
        config.add(name, default, "html", ())
    add_addresses(None, config)
    return config


def test_buttons_links_and_cards_appear_once_an_address_is_given_and_not_before():
    plain = configured()
    assert plain.html_theme_options == {"launch_buttons": {"thebe": False}}
    assert (plain.ogp_site_url, plain.ogp_image) == ("", "")
    address = "https://github.com/owner/cibr"
    given = configured(
        repository_address=address, doi="10.5281/zenodo.1", html_baseurl="https://a/"
    )
    options = given.html_theme_options
    assert options["repository_url"] == address and options["use_repository_button"]
    assert set(options["launch_buttons"]) == {"thebe", "binderhub_url", "colab_url"}
    assert [link["url"] for link in options["icon_links"]] == ["https://doi.org/10.5281/zenodo.1"]
    assert (given.ogp_site_url, given.ogp_image) == ("https://a/", "_images/beta.png")


def test_a_text_cannot_end_the_numbers_of_a_page(tmp_path):
    (tmp_path / "piece.html").write_text('<script id="data">$data</script><p>$said</p>')
    page = filled(str(tmp_path / "piece.py"), {"text": "a</script><b> & $said"}, said="<i>c</i>")
    data, rest = page.removeprefix('<script id="data">').split("</script>")
    assert json.loads(data) == {"text": "a</script><b> & $said"} and rest == "<p><i>c</i></p>"


def test_the_first_page_says_clone_once_an_address_is_given():
    page = SimpleNamespace(config=SimpleNamespace(repository_address="https://host/owner/cibr"))
    (block,) = _GetProject.run(page)
    assert block.astext() == "git clone https://host/owner/cibr cibr && cd cibr"


def test_docstrings_become_markup():
    lines = ["Says `a` of |b|.", "", "    x = |y|", "", "Args:", "    c: as `d|e`."]
    mark_up_docstring(None, "function", "f", None, None, lines)
    assert lines[0] == "Says ``a`` of \\|b\\|." and lines[-1] == "    c: as ``d|e``."
    assert lines[1:6] == ["::", "", "    x = |y|", "", "Args:"]
