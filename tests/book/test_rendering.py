"""What the book adds to Sphinx, where the built pages cannot show it."""

from sphinx.config import Config

from cibr_book.rendering import add_addresses


def configured(**values):
    config = Config({}, {"html_theme_options": {"launch_buttons": {"thebe": False}}} | values)
    config.add("html_theme_options", {}, "html", ())
    for name in ("repository_address", "doi"):
        config.add(name, "", "html", ())
    add_addresses(None, config)
    return config.html_theme_options


def test_buttons_and_links_appear_once_an_address_is_given_and_not_before():
    assert configured() == {"launch_buttons": {"thebe": False}}
    found = configured(repository_address="https://github.com/owner/cibr", doi="10.5281/zenodo.1")
    assert (
        found["repository_url"] == "https://github.com/owner/cibr"
        and found["use_repository_button"]
    )
    assert {"thebe", "binderhub_url", "colab_url"} == set(found["launch_buttons"])
    assert [link["url"] for link in found["icon_links"]] == ["https://doi.org/10.5281/zenodo.1"]
