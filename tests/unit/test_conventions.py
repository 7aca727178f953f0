"""Conventions of all tasks and operations, so that runs are readable and repeatable, and show no secrets."""

import ast
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from roles import RELAY_PORT, RELAY_TLS_PORT, ROLES, Role
from tests.protocols import turn

ROOT = Path(__file__).parent.parent.parent
TASKS = [ROOT / "deploy.py", *sorted((ROOT / "tasks").glob("*.py"))]
OPERATIONS = sorted((ROOT / "operations").glob("*.py"))


def calls(path: Path) -> Iterator[tuple[str, ast.Call]]:
    """Every call of a file, with the dotted name of what is called."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


@cache
def operations_of_ours() -> set[str]:
    """Every `module.function` below operations/ that is a pyinfra operation."""
    return {
        f"{path.stem}.{node.name}"
        for path in OPERATIONS
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef)
        and any(ast.unparse(decorator).partition("(")[0] == "operation" for decorator in node.decorator_list)
    }


def where(path: Path, node: ast.AST) -> str:
    return f"{path.relative_to(ROOT)}:{getattr(node, 'lineno', '?')}"


by_name = pytest.mark.parametrize("path", [*TASKS, *OPERATIONS], ids=lambda path: f"{path.parent.name}/{path.name}")
task_by_name = pytest.mark.parametrize("path", TASKS, ids=lambda path: path.name)


def test_operations_and_their_calls_are_found() -> None:
    assert {"files.present", "units.running", "packages.installed", "virtualenvs.in_use"} <= operations_of_ours()
    assert sum(name in operations_of_ours() for path in TASKS for name, _ in calls(path)) > 25


@task_by_name
def test_operations_are_named(path: Path) -> None:
    """Without a name an operation is shown with all its arguments, secrets among them."""
    for name, call in calls(path):
        if name in operations_of_ours():
            given = next((keyword.value for keyword in call.keywords if keyword.arg == "name"), None)
            assert given is not None, f"{where(path, call)}: {name} has no name="
            assert isinstance(given, ast.Constant) and isinstance(given.value, str), (
                f"{where(path, call)}: not a plain text"
            )
            assert given.value[:1].isupper() and not given.value.endswith("."), f"{where(path, call)}: {given.value!r}"


def test_names_of_operations_are_unique() -> None:
    names = [
        ast.literal_eval(keyword.value)
        for path in TASKS
        for name, call in calls(path)
        if name in operations_of_ours()
        for keyword in call.keywords
        if keyword.arg == "name"
    ]
    assert sorted(names) == sorted(set(names))


@pytest.mark.parametrize("role", ROLES.values(), ids=list(ROLES))
def test_every_unit_is_run_by_an_operation_with_its_title(role: Role) -> None:
    names = [
        ast.literal_eval(keyword.value)
        for name, call in calls(ROOT / "tasks" / f"{role.name}.py")
        if name == "units.running"
        for keyword in call.keywords
        if keyword.arg == "name"
    ]
    expected = [f"Run {role.title_of(unit)}" for unit in role.units]
    assert [name for name in names if name in expected] == expected and len(set(expected)) == len(expected)


@by_name
def test_nothing_depends_on_what_a_run_changes(path: Path) -> None:
    """A restart that depends on it is lost when a run is interrupted (operations/units.py)."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Attribute):
            own = path.name == "units.py" and ast.unparse(node) == "now.changed"  # a time
            assert node.attr not in ("will_change", "did_change") or own, where(path, node)
            assert node.attr != "changed" or own, where(path, node)


@by_name
def test_no_operation_that_changes_something_every_time(path: Path) -> None:
    for name, call in calls(path):
        assert name not in ("server.shell", "python.call", "systemd.daemon_reload", "apt.update"), where(path, call)
        given = {keyword.arg for keyword in call.keywords}
        assert not given & {"restarted", "reloaded", "daemon_reload"}, where(path, call)


@by_name
def test_modes_are_texts_and_always_given(path: Path) -> None:
    """A number would be read as decimal, and without a mode a file gets another one by sudo than as root."""
    for name, call in calls(path):
        mode = next((keyword.value for keyword in call.keywords if keyword.arg == "mode"), None)
        if mode is not None and name.rpartition(".")[2] not in ("mkdir", "open", "chmod"):
            assert not isinstance(mode, ast.Constant) or isinstance(mode.value, str), where(path, call)
        if path in TASKS and name in ("Directory", "Template", "Text", "Copy"):
            assert mode is not None, f"{where(path, call)}: {name} without mode="
            assert isinstance(mode, ast.Constant) and str(mode.value).isdigit(), where(path, call)


@task_by_name
def test_tasks_are_short_and_documented(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 120
    assert ast.get_docstring(ast.parse(path.read_text()))


@task_by_name
def test_tasks_take_only_typed_settings(path: Path) -> None:
    """Group data reaches a task only through settings/, which has validated it."""
    for node in ast.walk(ast.parse(path.read_text())):
        assert not (isinstance(node, ast.Attribute) and ast.unparse(node) == "host.data"), where(path, node)


@pytest.mark.parametrize("role", ROLES)
def test_every_role_has_its_files(role: str) -> None:
    """Under the same names, so that everything about a role is found by its name."""
    for folder in ("tasks", "settings"):
        assert (ROOT / folder / f"{role}.py").is_file(), folder

    assert (ROOT / "templates" / role).is_dir()


def test_every_role_is_in_the_sample_inventory() -> None:
    """As a line, or as a comment that only has to be made one."""
    lines = (ROOT / "inventories" / "prod.py").read_text().splitlines()
    assert [role for role in ROLES if not {f"{role} = [_machine]", f"# {role} = [_machine]"} & {*lines}] == []


def test_every_role_is_tested_on_a_host_with_make_test_role() -> None:
    """By a file of its name, or by tests that are marked with it."""
    files = sorted((ROOT / "tests" / "e2e").glob("test_*.py"))
    marked = {
        str(ast.literal_eval(role))
        for path in files
        for name, call in calls(path)
        if name == "pytest.mark.role"
        for role in call.args
    }
    assert set(ROLES) - marked - {path.stem.removeprefix("test_") for path in files} == set()
    assert marked <= set(ROLES), "no role has this name"


def test_every_role_is_deployed_after_those_that_it_needs() -> None:
    included = [ast.literal_eval(call.args[0]) for name, call in calls(ROOT / "deploy.py") if name == "local.include"]
    roles = [role for role in map(lambda path: Path(path).stem, included) if role in ROLES]
    assert sorted(roles) == sorted(ROLES)
    assert included[-1] == "tasks/certificates.py"
    for role in roles:
        # Synapse asks MAS about every token, so MAS is there first; it needs Synapse only once people come.
        needs = [needed for needed in ROLES[role].needs if (role, needed) != ("mas", "synapse")]
        assert all(roles.index(needed) < roles.index(role) for needed in needs), role


def test_every_role_with_a_database_needs_the_role_that_makes_it() -> None:
    assert [role.name for role in ROLES.values() if role.database and "postgres" not in role.needs] == []


@pytest.mark.parametrize("path", ["roles.py", "tests/protocols/turn.py", "tests/e2e/intruder.py"])
def test_these_need_nothing_but_python(path: str) -> None:
    """The records need neither pyinfra nor settings; the others are run on machines by themselves."""
    nodes = list(ast.walk(ast.parse((ROOT / path).read_text())))
    modules = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    modules += [str(node.module) for node in nodes if isinstance(node, ast.ImportFrom)]
    assert [name for name in modules if name.partition(".")[0] not in sys.stdlib_module_names] == []


def test_the_tests_own_protocols_have_the_ports_of_the_records() -> None:
    """They import nothing of the product: they run on other computers, too."""
    assert (turn.PORT, turn.TLS_PORT) == (RELAY_PORT, RELAY_TLS_PORT)


def test_what_all_roles_share_names_no_role() -> None:
    """`Settings` and `View` are for every role; what is about one is in its own module."""
    texts = {
        node.value
        for node in ast.walk(ast.parse((ROOT / "settings" / "deployment.py").read_text()))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }
    assert texts & set(ROLES) == set()


@pytest.mark.skipif(not shutil.which("make"), reason="make is not on this computer")
def test_every_program_is_linted() -> None:
    """Also those whose name does not say in which language they are."""
    own = {name: value for name, value in os.environ.items() if not name.startswith("MAKE") and name != "MFLAGS"}
    linted, files = (
        subprocess.run(command, cwd=ROOT, env=own, capture_output=True, text=True, check=True).stdout.split()
        for command in (["make", "-n", "lint"], ["git", "ls-files"])
    )
    unnamed = [name for name in files if not Path(name).suffix and (ROOT / name).is_file()]
    programs = [name for name in unnamed if (ROOT / name).read_bytes().startswith(b"#!")]
    assert len(programs) > 8
    assert sorted(set(programs) - {word.rstrip(")") for word in linted}) == []
