"""All settings that may be chosen, and the messages about values that are not allowed."""

import difflib
import importlib
from collections.abc import Iterable, Mapping
from typing import Any, get_args

from pydantic import BaseModel, Field, ValidationError, create_model

from roles import ROLES
from settings.deployment import Common, SettingError
from settings.fields import A_DOMAIN, Domain, Explained


def _sections() -> tuple[type[Any], ...]:
    """The common settings, and those of each role: the class Choices of its module."""
    modules = [importlib.import_module(f"settings.{role}") for role in ROLES]
    own: list[type[Any]] = [module.Choices for module in modules if hasattr(module, "Choices")]
    return (Common, *own)


def _domains() -> dict[str, Any]:
    """The setting for each domain name of a role."""
    return {
        each.setting: (
            Domain | None,
            Field(description=A_DOMAIN.format(example=f"{role.prefix_of(each)}.example.org")),
        )
        for role in ROLES.values()
        for each in role.domains
    }


Choices: type[Common] = create_model("Choices", __base__=_sections(), **_domains())


def choices_from(data: Mapping[str, Any], deployment: str) -> Common:
    """Validate group data. Raises SettingError with a line per mistake."""
    mistakes: list[str] = []
    where = f"group_data/{deployment}.py"
    for name in data:
        # pyinfra's own data (ssh_user, ...) and global arguments (_sudo, ...) are in the same dictionary.
        if name not in Choices.model_fields and not name.startswith(("_", "ssh_")):
            mistakes.append(f"{where}: there is no setting {name}{_nearest(name, Choices.model_fields)}")
    if data.get("server_name") is None:
        mistakes.append(f"{where}: server_name is missing: set it to {_allowed(('server_name',))}")
    known = {name: data.get(name) for name in Choices.model_fields}
    try:
        chosen = Choices.model_validate(known)
    except ValidationError as error:
        for problem in error.errors():
            path = tuple(part for part in problem["loc"] if not isinstance(part, int))
            if path == ("server_name",) and data.get("server_name") is None:
                continue
            why = problem.get("ctx", {}).get("error")
            explanation = f"; {why}" if isinstance(why, Explained) else ""
            mistakes.append(f"{where}: {_mistake(path, problem['type'], problem['input'])}{explanation}")
    if mistakes:
        raise SettingError("\n".join(dict.fromkeys(mistakes)))
    return chosen


def _mistake(path: tuple[Any, ...], kind: str, value: Any) -> str:
    """The line for a wrong value. path: the setting, and the key in it if it is a dictionary or a list of them."""
    setting, *rest = path
    name = f"{setting}{''.join(f'[{part!r}]' for part in rest)}"
    if rest and kind == "extra_forbidden":
        model = _nested(setting)
        if "secret" in str(rest[0]):
            return f"there is no {name}: secrets belong into the vault, see `python manage.py NAME secrets show`"
        return f"there is no {name}{_nearest(str(rest[0]), model.model_fields if model else ())}"
    if rest and kind == "missing":
        return f"{name} is missing: set it to {_allowed(path)}"
    # Also of a whole dictionary with a secret in it, which belongs into the vault.
    shown = "*****" if any(word in f"{name} {value!r}" for word in ("hmac", "secret")) else repr(value)
    return f"{name} = {shown} is not allowed: it must be {_allowed(path)}"


def _nested(setting: str) -> type[BaseModel] | None:
    """The model of a setting that is a dictionary with keys of its own."""
    annotation = Choices.model_fields[setting].annotation
    kinds = [annotation, *get_args(annotation)]
    return next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)), None)


def _allowed(path: tuple[Any, ...]) -> str:
    setting, *rest = path
    model = _nested(setting)
    if rest and model and rest[0] in model.model_fields:
        return model.model_fields[rest[0]].description or ""
    return Choices.model_fields[setting].description or ""


def _nearest(name: str, names: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, list(names), n=1, cutoff=0.6)
    return f"; did you mean {near[0]}?" if near else "; group_data/all.py lists them all"
