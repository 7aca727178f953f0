"""Requests to a service of a machine at 127.0.0.1, sent from the machine itself by curl."""

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

from compat import Refused
from manage.machines import Machine

# Seconds. A deactivation leaves all rooms of an account.
TIMEOUT = 120
# 7: nobody listens, and the status that it prints is 000.
CURL = (
    f"curl -q --silent --show-error --noproxy '*' --max-time {TIMEOUT} --write-out '\\n%{{http_code}}' --config - "
    "|| [ $? = 7 ]"
)


class Answer(NamedTuple):
    """The answer to a request. content: its JSON; {} if it is none."""

    status: int
    content: Any

    @property
    def error(self) -> str:
        """Why it was refused, in the words of the service."""
        found = self.content if isinstance(self.content, dict) else {}
        errors = found.get("errors") or [{}]
        return str(found.get("error") or errors[0].get("title") or f"HTTP status {self.status}").rstrip(".")


def configuration(method: str, url: str, headers: Mapping[str, str], data: str | None) -> str:
    """A request as a configuration file of curl, which it reads from standard input: so no secret is on a command line.

    headers and data: without control characters.
    """
    given = [("url", url), ("request", method), *(("header", f"{key}: {value}") for key, value in headers.items())]
    if data is not None:
        given.append(("data-raw", data))
    escaped = [(key, value.replace("\\", "\\\\").replace('"', '\\"')) for key, value in given]
    return "".join(f'{key} = "{value}"\n' for key, value in escaped)


def send(
    machine: Machine,
    unit: str,
    method: str,
    url: str,
    headers: Mapping[str, str],
    content: Any = None,
    form: str | None = None,
) -> Answer:
    """Send a request to the unit's program. content: its JSON; form: its URL-encoded fields. Raises Refused without an answer."""
    data, kind = form, "application/x-www-form-urlencoded"
    if content is not None:
        data, kind = json.dumps(content), "application/json"
    headers = {**headers, "Content-Type": kind} if data is not None else headers
    *body, status = machine.run(CURL, configuration(method, url, headers, data))
    if status == "000":
        raise Refused(
            f"{unit} does not run on {machine.name}: `systemctl status {unit}` there says why, and a deploy starts it"
        )
    try:
        return Answer(int(status), json.loads("\n".join(body)))
    except json.JSONDecodeError:
        return Answer(int(status), {})
