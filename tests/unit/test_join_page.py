"""The page of the server name, and what else may be there."""

import html
import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from operations.templating import render
from settings.caddy import Caddy
from settings.join_page import LANGUAGES, JoinPage
from tests.unit.test_settings import settings
from vault import WithoutSecrets

HERE = {role: ["one"] for role in ("postgres", "synapse", "caddy")}


def test_every_language_says_the_same() -> None:
    for words in LANGUAGES.values():
        assert list(words) == list(LANGUAGES["en"])
        assert [name for name, text in words.items() if "{" in text] == ["title"]


class Links(HTMLParser):
    def __init__(self, page: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.open: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.links += [value or "" for name, value in attrs if name in ("href", "src")]
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("registration", ["closed", "token", "open"])
def test_it_says_how_to_join(tmp_path: Path, language: str, registration: str) -> None:
    for roles in (HERE, {**HERE, "element": ["one"]}):
        page = JoinPage.of(settings(tmp_path, roles), language, registration)
        written, _ = render("synapse/page.html.j2", {"page": page})
        found = Links(written)
        assert found.open == []
        assert html.escape(LANGUAGES[language][registration]) in written or LANGUAGES[language][registration] in written
        assert f":{page.server_name}</code>" in written and f'<html lang="{language}">' in written
        # Nothing is loaded from elsewhere.
        assert [link for link in found.links if not link.startswith(("https://", "data:image/svg+xml"))] == []
        assert written.count(" src=") == 1 and "<script" not in written
        assert ("https://chat.x.test/" in found.links) == ("element" in roles)


@pytest.mark.parametrize(
    ("site", "there", "not_there"),
    [
        ("page", "import join_page zh", "redir"),
        (None, "/.well-known/matrix/client", "import join_page"),
        ("https://www.x.test/", "redir https://www.x.test{uri} 302", "import join_page"),
        ("/srv/www", "root * /srv/www", "import join_page"),
    ],
)
def test_what_is_at_the_server_name_is_chosen(tmp_path: Path, site: Any, there: str, not_there: str) -> None:
    chosen = settings(tmp_path, HERE, server_name_site=site)
    chosen.vault = WithoutSecrets()
    written, _ = render("caddy/Caddyfile.j2", chosen.view(Caddy).values())
    assert there in written.replace('"', "") and not_there not in written
    assert "handle /.well-known/matrix/client" in written


@pytest.mark.parametrize("site", ["www.x.test", "http://www.x.test", "srv/www", "", "/srv/my www"])
def test_anything_else_is_refused(tmp_path: Path, site: str) -> None:
    with pytest.raises(Exception, match=r'server_name_site = .* is not allowed: it must be "page", None'):
        settings(tmp_path, HERE, server_name_site=site)


@pytest.mark.parametrize(
    ("chosen", "published"),
    [
        ({}, None),
        (
            {"support_email": "abuse@x.test"},
            {"contacts": [{"email_address": "abuse@x.test", "role": "m.role.admin"}]},
        ),
        ({"support_page": "https://x.test/help"}, {"support_page": "https://x.test/help"}),
    ],
)
def test_whom_to_write_to_is_published_if_chosen(tmp_path: Path, chosen: Any, published: Any) -> None:
    found = settings(tmp_path, HERE, **chosen)
    found.vault = WithoutSecrets()
    written, _ = render("caddy/Caddyfile.j2", found.view(Caddy).values())
    _, path, rest = written.partition("handle /.well-known/matrix/support {")
    assert bool(path) == bool(published)
    if published:
        assert json.loads(rest.split("`")[1]) == published
