"""manage.py NAME sbom without a machine: what is read from files, what is made of it, and what is printed."""

import hashlib
import re
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from compat import Refused
from manage import sbom
from manage.outdated import needed_packages
from operations.machine import MachineState
from operations.shell import shell_file
from operations.virtualenvs import locked, locked_files
from settings import Settings
from settings.rtc import LIVEKIT_VERSION
from tests.deployment import Deployment
from tests.unit.test_settings import settings
from vault import WithoutSecrets

SYNAPSE = locked("synapse")["matrix-synapse"]
# Copyright files: package -> its text.
COPYRIGHT = {
    "readable": """Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/
Upstream-Name: Readable
License: Expat

Files: *
Copyright: 2027, Ren\xe9
License:  GPL-2+ or Artistic
 a text

Files: debian/*
License: GPL-2+ or Artistic

Files: lib/*
Copyright: 2027, Somebody
License: Permission is granted to everybody, free of charge, to do
 all of it.

License: Artistic
 another text
""",
    "old": "Format-Specification: http://dep.debian.net/deps/dep5/\n\nFiles: *\nLicense: ISC\n",
    "prose": "This is Prose, packaged by me.\n\nLicense: GPL-2\n\nFiles: none\n",
}
# Metadata of Python packages: program and directory -> its text.
METADATA = {
    "matrix-synapse/current": f"Name: matrix-synapse\nVersion: {SYNAPSE}\nLicense-Expression: AGPL-3.0-or-later\n"
    "License: not asked\n\nLicense: of the description\nName: no\n",
    "matrix-synapse/current ": "Name: zope.interface\nVersion: 8.7\nClassifier: License :: OSI Approved :: MIT License\n"
    "Classifier: License :: OSI Approved\nClassifier: License :: OSI Approved :: ISC License (ISCL)\nLicense: X\n\n",
    "uv/0123456789ab": "Name: uv\nVersion: 0.1\nLicense: Copyright (c) Somebody\n        and others\nSummary: S\n\n",
    "somebodys/current": "Name: somebodys\nVersion: 1\n\n",
}


@pytest.fixture
def chosen(tmp_path: Path) -> Settings:
    """A machine with PostgreSQL, Caddy, Synapse and LiveKit, about which nothing is known yet."""
    roles = {role: ["one"] for role in ("postgres", "caddy", "synapse", "rtc")}
    found = settings(tmp_path, roles, MachineState(release="13", architecture="amd64"))
    found.vault = WithoutSecrets()
    return found


def printed(function: str, root: Path) -> list[str]:
    """What a function of operations/sh/installed.sh prints about the files below a directory."""
    text = shell_file("installed").replace("/usr/share/doc", f"{root}/usr/share/doc").replace("/opt", f"{root}/opt")
    done = subprocess.run(["sh", "-euc", f"{text}\n{function}"], capture_output=True, check=True)
    assert done.stderr == b""
    return done.stdout.decode("ascii").replace(str(root), "").splitlines()


def lines(**answers: Sequence[str]) -> list[str]:
    """The answers of a machine to the one command, by what was asked."""
    return [
        f"{number}:{line}" for number, key in enumerate(sbom._QUESTIONS) for line in (*answers.get(key, ()), sbom._END)
    ]


PACKAGES = [
    "installed\tpostgresql-15\t15.9-0+deb12u1\tamd64\tpostgresql-15\t15.9-0+deb12u1",
    "installed\tpostgresql-common\t248\tall\tpostgresql-common\t248",
    "installed\tlibstdc++6\t1:12.2.0-14\tamd64\tgcc-12\t12.2.0-14",
    "installed\tcaddy\t2.6.2-5+b1\tamd64\tcaddy\t2.6.2-5",
    "installed\tnftables\t1.0.6-2\tamd64\tnftables\t1.0.6-2",
    "config-files\tgone\t1\tamd64\tgone\t1",
]
FULL = {
    "system": ["debian 12 amd64"],
    "debian": PACKAGES,
    "licences": ["postgresql-15\tPostgreSQL", "caddy\tApache-2.0", "caddy\tApache-2.0 and BSD-3-Clause"],
    "python": [
        "file /opt/matrix-synapse/current/lib/python3.11/site-packages/matrix_synapse.dist-info/METADATA",
        *("Name: matrix-synapse", f"Version: {SYNAPSE}", "License-Expression: AGPL-3.0-or-later"),
        "file /opt/matrix-synapse/current/lib/python3.11/site-packages/soupsieve.dist-info/METADATA",
        *("Name: soupsieve", "Version: 2.10", "License-Expression: MIT"),
    ],
    "releases": [f"livekit {LIVEKIT_VERSION}-{'a' * 12} {'a' * 64}", f"mas v0.1-{'b' * 12} {'b' * 64}", "foo v1-c c"],
    "deployed": ['{"by": "anna", "version": "0.2.0", "commit": "1234567"}'],
}


def answered(chosen: Settings, machine: str = "one", /, **answers: Sequence[str]) -> sbom.Installed:
    return sbom.installed(machine, chosen, lines(**{**FULL, **answers}))


def components(document: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    return {each["name"]: each for each in document["components"]}


def roles(component: Mapping[str, Any]) -> list[str]:
    return [each["value"] for each in component.get("properties", ()) if each["name"] == "matrix-metal:role"]


# --- what is read from files ---


def test_licences_are_read_from_copyright_files_that_programs_can_read(tmp_path: Path) -> None:
    for package, text in COPYRIGHT.items():
        file = tmp_path / "usr/share/doc" / package / "copyright"
        file.parent.mkdir(parents=True)
        file.write_bytes(text.encode("latin-1"))
    found = printed("debian_licences", tmp_path)
    assert sorted(line for line in found if "Permission" not in line) == [
        "old\tISC",
        "readable\tExpat",
        "readable\tGPL-2+ or Artistic",
    ]
    packages = [f"installed\t{package}\t1\tall\t{package}\t1" for package in COPYRIGHT]
    named = {
        each.name: each.licences for each in sbom.debian_packages("debian-13", _nothing(tmp_path), packages, found)
    }
    # A text is no name.
    assert named == {"readable": ("Expat", "GPL-2+ or Artistic"), "old": ("ISC",), "prose": ()}


def _nothing(directory: Path) -> Settings:
    return settings(directory, {"caddy": ["one"]}, MachineState(release="13"))


def test_metadata_of_python_packages_is_read_from_virtualenvs_in_use(tmp_path: Path, chosen: Settings) -> None:
    for number, (place, text) in enumerate(METADATA.items()):
        directory = tmp_path / "opt" / place.strip() / f"lib/python3.13/site-packages/{number}.dist-info"
        directory.mkdir(parents=True)
        (directory / "METADATA").write_text(text)
    found = sbom.python_packages(chosen, printed("python_packages", tmp_path))
    assert {program: {each.name: each.licences for each in parts} for program, parts in found.items()} == {
        "matrix-synapse": {
            "matrix-synapse": ("AGPL-3.0-or-later",),
            "zope-interface": ("MIT License", "ISC License (ISCL)"),
        },
        # The text of a licence is no name. What is of somebody else's is not ours.
        "uv": {"uv": ()},
    }
    assert printed("python_packages", tmp_path / "empty") == []


def test_release_files_have_the_sha256_of_what_was_installed(tmp_path: Path) -> None:
    opt = tmp_path / "opt"
    for name, directory in (
        ("sliding-sync", "v1-0123456789ab"),
        ("livekit", "v2-" + "a" * 12),
        ("sydent", "key-py3.13"),
    ):
        (opt / name / directory).mkdir(parents=True)
        (opt / name / "current").symlink_to(directory)
    (opt / "sliding-sync/current/sliding-sync").write_text("program")
    (opt / f"livekit/v2-{'a' * 12}.sum").write_text(f"{'a' * 64} {'0' * 64}  -\n")
    (opt / "sydent/current/pyvenv.cfg").touch()
    found = dict(line.rsplit(" ", 1) for line in printed("release_files", tmp_path))
    assert set(found) == {"sliding-sync v1-0123456789ab", f"livekit v2-{'a' * 12}"}
    assert found[f"livekit v2-{'a' * 12}"] == "a" * 64
    assert found["sliding-sync v1-0123456789ab"] == hashlib.sha256(b"program").hexdigest()


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("Expat", ("Expat",)),
        ("GPL-2+ or AFL-2.1, and Expat and Tcl-BSDish", ("GPL-2+", "AFL-2.1", "Expat", "Tcl-BSDish")),
        ("REGCOMP, and GPL-1+ or Artistic", ("REGCOMP", "GPL-1+", "Artistic")),
        ("GPL-3+ with Bison exception", ("GPL-3+ with Bison exception",)),
        ("(MIT OR Apache-2.0) AND Unicode-3.0", ("MIT", "Apache-2.0", "Unicode-3.0")),
        ("* Permission to use this software in any way is granted without", ()),
        ("Redistribution and use in source and binary forms, with or without", ()),
        ("", ()),
    ],
)
def test_names_of_licences(text: str, names: tuple[str, ...]) -> None:
    assert sbom.licence_names(text) == names


# --- what is made of it ---


def test_each_kind_of_component(chosen: Settings) -> None:
    found = components(sbom.document("prod", "a.test", [answered(chosen)]))
    assert (
        found["caddy"]["purl"]
        == "pkg:deb/debian/caddy@2.6.2-5%2Bb1?arch=amd64&distro=debian-12&upstream=caddy%402.6.2-5"
    )
    assert found["libstdc++6"]["purl"].startswith("pkg:deb/debian/libstdc%2B%2B6@1:12.2.0-14?arch=amd64&")
    assert [each["license"]["name"] for each in found["caddy"]["licenses"]] == [
        "Apache-2.0",
        "Apache-2.0 and BSD-3-Clause",
    ]
    assert "licenses" not in found["nftables"] and "gone" not in found
    # The version of PostgreSQL is that of the machine, which is not known when it is asked.
    assert roles(found["postgresql-15"]) == ["postgres"] and roles(found["postgresql-common"]) == []
    assert roles(found["caddy"]) == ["caddy"] and roles(found["nftables"]) == ["rtc"]
    assert found["matrix-synapse"]["purl"] == f"pkg:pypi/matrix-synapse@{SYNAPSE}"
    assert found["matrix-synapse"]["licenses"] == [{"expression": "AGPL-3.0-or-later"}]
    [reference] = found["soupsieve"]["externalReferences"]
    assert {each["content"] for each in reference["hashes"]} == set(locked_files("synapse")["soupsieve", "2.10"])
    assert found["livekit"]["purl"] == f"pkg:github/livekit/livekit@{LIVEKIT_VERSION}"
    assert found["livekit"]["hashes"] == [{"alg": "SHA-256", "content": "a" * 64}]
    assert found["livekit"]["licenses"] == [{"expression": "Apache-2.0"}]
    # What a role has left that is no longer in the inventory is still there; what is of somebody else's is not ours.
    assert found["mas"]["purl"] == "pkg:generic/mas@v0.1" and "foo" not in found
    assert found["matrix-metal"]["version"] == "0.2.0"
    assert found["matrix-metal"]["properties"] == [{"name": "matrix-metal:commit", "value": "1234567"}]


def test_the_document_says_what_is_on_which_machine(chosen: Settings) -> None:
    other = answered(
        chosen, "two", system=["debian 13 arm64"], releases=[f"livekit {LIVEKIT_VERSION}-{'d' * 12} {'d' * 64}"]
    )
    document = sbom.document("prod", "a.test", [answered(chosen), other])
    assert (document["bomFormat"], document["specVersion"], document["version"]) == ("CycloneDX", "1.6", 1)
    refs = [each["bom-ref"] for each in document["components"]]
    assert len(set(refs)) == len(refs)
    depends = {each["ref"]: each["dependsOn"] for each in document["dependencies"]}
    root = document["metadata"]["component"]["bom-ref"]
    assert depends[root] == ["machine/one", "machine/two"]
    assert {ref for found in depends.values() for ref in found} | {root} == {*refs, root}
    synapse, came_along = f"pkg:pypi/matrix-synapse@{SYNAPSE}", "pkg:pypi/soupsieve@2.10"
    assert depends[synapse] == [came_along]
    for machine, own, others in (("one", "a", "d"), ("two", "d", "a")):
        there = depends[f"machine/{machine}"]
        assert f"livekit/{LIVEKIT_VERSION}-{own * 12}" in there and synapse in there and came_along not in there
        assert f"livekit/{LIVEKIT_VERSION}-{others * 12}" not in there
    assert "system/debian-12" in depends["machine/one"] and "system/debian-13" in depends["machine/two"]


def test_the_order_does_not_depend_on_that_of_the_answers(chosen: Settings) -> None:
    one = sbom.document("prod", "a.test", [answered(chosen)])
    other = sbom.document("prod", "a.test", [answered(chosen, debian=PACKAGES[::-1], releases=FULL["releases"][::-1])])
    assert one["components"] == other["components"] and one["dependencies"] == other["dependencies"]
    assert one["serialNumber"] != other["serialNumber"]


@pytest.mark.parametrize("answers", [{"system": ["fedora 44 "]}, {"debian": []}, dict.fromkeys(FULL, ())])
def test_a_machine_without_debian_is_refused(answers: Mapping[str, Sequence[str]], chosen: Settings) -> None:
    with pytest.raises(Refused, match="one does not say which packages it has"):
        answered(chosen, **answers)


def test_an_answer_that_ends_early_is_refused(chosen: Settings) -> None:
    complete = lines(**FULL)
    for number, _ in enumerate(sbom._QUESTIONS):
        # Only its end is missing, and then all of it.
        for missing in (f"{number}:{sbom._END}", f"{number}:"):
            with pytest.raises(Refused, match="one has not answered in full"):
                sbom.installed("one", chosen, [line for line in complete if not line.startswith(missing)])


def test_a_machine_that_was_never_deployed_has_debians_packages(chosen: Settings) -> None:
    found = answered(chosen, python=(), releases=(), deployed=(), licences=())
    assert {each.kind for each in found.components} == {"debian"}


def test_packages_that_roles_ask_for(chosen: Settings) -> None:
    def asks_for(name: str) -> set[str]:
        return {role for role, pattern in needed_packages(chosen) if pattern.fullmatch(name)}

    assert asks_for("postgresql-15") == asks_for("postgresql-17") == {"postgres"}
    assert asks_for("libjemalloc2") == {"synapse"} and asks_for("ca-certificates") == {""}
    assert asks_for("postgresql-client-17") == asks_for("vim") == set()


# --- what is printed ---


def test_the_table_counts_licences_and_names_what_has_none(
    chosen: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    licences = [*FULL["licences"], "postgresql-common\tbsd-3-clause", "libstdc++6\tBSD-3-Clause"]
    sbom.print_licences(sbom._merged([answered(chosen, licences=licences)]))
    rows, *unknown = capsys.readouterr().out.split("\n\n")
    numbers = dict(re.findall(r"^(.+?) {2,}(\d+) ", rows, re.MULTILINE))
    # The case makes no difference.
    assert numbers["BSD-3-Clause"] == "3" and numbers["Apache-2.0"] == "2" and "bsd-3-clause" not in numbers
    place = "/usr/share/doc/NAME/copyright on a machine that has them"
    assert [" ".join(each.split()) for each in unknown] == [
        f"Debian's packages whose licence no program can read (1; see {place}): nftables",
        "Programs from release pages whose licence no program can read (1; see the pages of their projects): mas",
    ]


def test_nothing_is_written_without_every_machine(tmp_path: Path) -> None:
    deployment = Deployment(tmp_path, [], {"server_name": "a.test", "tls": "internal"}, roles={})
    (tmp_path / "known_hosts").touch()
    data = {"ssh_hostname": "127.0.0.1", "ssh_port": 1, "ssh_known_hosts_file": str(tmp_path / "known_hosts")}
    deployment.inventory.write_text(f"caddy = [{('far', data)!r}]\n")
    file = tmp_path / "sbom.json"
    file.write_text("before")
    done = deployment.manage("sbom", "--output", "sbom.json")
    assert (done.returncode, done.stdout, file.read_text()) == (1, "", "before")
    assert done.stderr.startswith(
        "manage: there is no bill of materials without every machine: far cannot be reached: "
    )
    assert len(done.stderr.splitlines()) == 1
    for output, why in (("none/sbom.json", "there is no directory"), (".", "it is not a file")):
        done = deployment.manage("sbom", "--output", output)
        assert done.returncode == 1 and done.stderr.startswith("manage: --output ") and why in done.stderr
