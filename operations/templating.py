"""Jinja2 as our templates use it. Values are passed by name; a missing one is an error, never an empty string."""

import contextlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemBytecodeCache, FileSystemLoader, StrictUndefined
from jinja2.bccache import Bucket

from vault import Secret
from whole_file import cache_directory, made_cache

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


class _Compiled(FileSystemBytecodeCache):
    """Compiled templates in the cache directory: compiling all of them takes longer than everything else about them.

    Jinja2 looks at each template's text before it uses what is compiled. A cache that cannot be written is none.
    """

    def __init__(self, directory: Path) -> None:
        with contextlib.suppress(OSError):
            made_cache()
            directory.mkdir(parents=True, mode=0o700, exist_ok=True)
        super().__init__(str(directory))

    def load_bytecode(self, bucket: Bucket) -> None:
        with contextlib.suppress(OSError):
            super().load_bytecode(bucket)

    def dump_bytecode(self, bucket: Bucket) -> None:
        with contextlib.suppress(OSError):
            super().dump_bytecode(bucket)


def _environment(cache: Path) -> Environment:
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        bytecode_cache=_Compiled(cache),
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
_ENVIRONMENT = _environment(cache_directory() / "templates")


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
