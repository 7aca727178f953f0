"""Jinja2 as our templates use it. Values are passed by name; a missing one is an error, never an empty string."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from vault import Secret

TEMPLATES = Path(__file__).parent.parent / "templates"
MASK = "*****"


def yaml(value: Any) -> str:
    """A value as YAML on one line. JSON is YAML, and its quoting leaves nothing to guess."""
    return json.dumps(value, ensure_ascii=False)


def ini(value: Any) -> str:
    """A value for Python's ConfigParser, which interpolates % and strips white space at both ends.

    The section must have an empty option called `nothing`, which protects such white space.
    """
    text = str(value).replace("%", "%%")
    return text if text == text.strip() else f"%(nothing)s{text}%(nothing)s"


def caddyfile(value: Any) -> str:
    """A value as one quoted word of a Caddyfile. Braces are placeholders there and cannot be quoted: see Caddy's docs."""
    return '"' + str(value).replace("\\", "\\\\").replace('"', '\\"') + '"'


def environment_file(value: Any) -> str:
    """A value for systemd's EnvironmentFile=, where only these characters are special between double quotes."""
    escaped = str(value)
    for character in '\\"`$':
        escaped = escaped.replace(character, "\\" + character)
    return f'"{escaped}"'


_masking = False


def _reveal(value: Secret | str) -> str:
    if not isinstance(value, Secret):
        return value
    return MASK if _masking else value.reveal()


def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,  # noqa: S701 - configuration files, not web pages
    )
    environment.filters |= {
        "reveal": _reveal,
        "yaml": yaml,
        "ini": ini,
        "caddyfile": caddyfile,
        "environment_file": environment_file,
    }
    return environment


# One for both renderings: to compile the templates takes longer than to render them.
_ENVIRONMENT = _environment()


def render(template: str, values: Mapping[str, Any]) -> tuple[str, str]:
    """The template (a path below templates/) rendered with the values, and the same with every secret masked.

    A secret is written only through the filter `reveal`; without it, it is written as *****.
    """
    global _masking
    made = _ENVIRONMENT.get_template(template)
    real = made.render(values)
    _masking = True
    try:
        return real, made.render(values)
    finally:
        _masking = False
