"""`make render`: the files of the sample deployments, as a directory that can be compared with another."""

import json
import runpy
from collections.abc import Iterator
from configparser import ConfigParser
from pathlib import Path

import pytest
import yaml

from roles import ROLES
from tests.deployment import ROOT
from tests.render import INDEX, SAMPLES, render


def contents(directory: Path) -> dict[str, bytes]:
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def test_samples_are_rendered_completely_and_reproducibly(tmp_path: Path) -> None:
    render(tmp_path / "all")
    render(tmp_path / "again", ["everything"])
    rendered = contents(tmp_path / "all")
    assert contents(tmp_path / "again" / "everything") == contents(tmp_path / "all" / "everything")

    index = dict(line.split(maxsplit=1) for line in rendered.pop(INDEX).decode().splitlines())
    assert set(rendered) == {path for path, _ in files_of(index)}
    for name, sample in SAMPLES.items():
        for machine in sample.machines:
            assert f"{name}/{machine}/etc/matrix-metal/deployment.json" in rendered
    assert index["prod/matrix/etc/turnserver.conf"] == "600 root:root"
    assert index["prod/matrix/etc/matrix-synapse/"] == "750 root:matrix-synapse"
    assert b"static-auth-secret=*****" in rendered["split/turn/etc/turnserver.conf"]
    assert "debian12/matrix/etc/postgresql/15/main/conf.d/matrix-metal.conf" in rendered
    # Those that another operation writes.
    assert "everything/matrix/etc/systemd/system/prometheus.service.d/matrix-metal.conf" in rendered
    for path, content in rendered.items():
        check_syntax(path, content.decode())


@pytest.mark.parametrize("name", ["prod", "split"])
def test_samples_have_the_roles_of_the_inventories_that_are_shipped(name: str) -> None:
    shipped = runpy.run_path(str(ROOT / "inventories" / f"{name}.py"))
    machines = {role: len(shipped[role]) for role in ROLES if role in shipped}
    assert machines == {role: len(SAMPLES[name].roles[role]) for role in ROLES if role in SAMPLES[name].roles}


def files_of(index: dict[str, str]) -> Iterator[tuple[str, str]]:
    return ((path, access) for path, access in index.items() if not path.endswith("/"))


def check_syntax(path: str, content: str) -> None:
    """Parse the file as its program would. Raises what the parser raises."""
    name = path.rpartition("/")[2]
    if name.endswith(".yaml"):
        assert isinstance(yaml.safe_load(content), dict), path
    elif name.endswith(".json"):
        json.loads(content)
    elif name == "sydent.conf" and "sysusers" not in path:
        parser = ConfigParser()
        parser.read_string(content)
        assert all(dict(parser[section]) for section in parser.sections()), path
    elif "/systemd/system/" in path:
        parser = ConfigParser(strict=False, interpolation=None, allow_no_value=False, delimiters="=")
        parser.optionxform = str  # type: ignore[assignment, method-assign]
        parser.read_string(content)
        assert set(parser.sections()) <= {"Unit", "Service", "Path", "Timer", "Install"}, path
        # A later run sees by it what the machine has from this one (operations/sh/machine.sh).
        assert "# Written by matrix-metal" in content.splitlines()[0], path


def test_a_directory_with_other_files_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "letter").write_text("x")
    with pytest.raises(SystemExit, match="something else"):
        render(tmp_path)
    assert (tmp_path / "letter").read_text() == "x"
