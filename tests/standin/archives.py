"""Release archives with stand-ins in them."""

import hashlib
import io
import os
import subprocess
import tarfile
from pathlib import Path

import yaml

HERE = Path(__file__).parent
# What the archive of MAS has besides the program: nothing that the stand-in could show, only what it has to find.
MAS_SHARE = {
    "policy.wasm": b"\0asm",
    "manifest.json": b"{}",
    "assets/stand-in.css": b"",
    "templates/stand-in.html": b"",
    "translations/en.json": b"{}",
}


def real_mas() -> Path | None:
    """The archive of the real MAS, if MAS_BINARY names it; None: the stand-in is deployed."""
    named = os.environ.get("MAS_BINARY")
    return Path(named).expanduser().resolve() if named else None


def mas_archive(directory: Path, program: bytes | None = None) -> Path:
    """An archive like that of MAS, made in the directory, with a program or tests/standin/mas-cli, and what that needs."""
    path = directory / "mas-cli-stand-in.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        _add(archive, "mas-cli", program or (HERE / "mas-cli").read_bytes(), 0o755)
        for name, content in MAS_SHARE.items():
            _add(archive, f"share/{name}", content)
        for file in Path(yaml.__file__).parent.glob("*.py"):
            _add(archive, f"lib/yaml/{file.name}", file.read_bytes())
    return path


# What Element Web does in a browser, as far as headers, routes and the configuration matter: it reads its configuration, and asks
# the homeserver that is in it.
ELEMENT_FILES = {
    "index.html": b"""<!doctype html><html lang="en"><head><meta charset="utf-8"><title>stand-in</title>
<link rel="stylesheet" href="bundles/0123456789ab/theme.css"></head>
<body><h1 id="state">starting</h1><script src="bundles/0123456789ab/app.js"></script></body></html>""",
    "bundles/0123456789ab/theme.css": b"h1 { color: rgb(13, 189, 139); }",
    "bundles/0123456789ab/app.js": b"""(async () => {
  const state = document.getElementById("state");
  const config = await (await fetch("config.json")).json();
  document.title = config.brand;
  const server = config.default_server_config["m.homeserver"];
  const versions = await (await fetch(server.base_url + "/_matrix/client/versions")).json();
  state.textContent = `${server.server_name} speaks ${versions.versions.at(-1)}`;
})().catch((error) => { document.getElementById("state").textContent = String(error); });""",
    "i18n/languages.json": b"{}",
    "widgets/element-call/index.html": b"<!doctype html><title>stand-in of a call</title>",
    "welcome.html": b"",
}


def real_element() -> Path | None:
    """The archive of the real Element Web, if ELEMENT_WEB_ARCHIVE names it; None: the stand-in is deployed."""
    named = os.environ.get("ELEMENT_WEB_ARCHIVE")
    return Path(named).expanduser().resolve() if named else None


def element_archive(directory: Path, version: str) -> Path:
    """An archive like Element Web's, made in the directory."""
    path = directory / f"element-{version}.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        for name, content in {**ELEMENT_FILES, "version": version.removeprefix("v").encode()}.items():
            _add(archive, f"element-{version}/{name}", content)
    return path


# The same of Cinny. The script in its page is that of the real one's, as the policy of the page allows no other.
CINNY_FILES = {
    "index.html": b"""<!doctype html><html lang="en"><head><meta charset="utf-8"><title>stand-in</title></head><body>
    <script>
      window.global ||= window;
    </script>
    <h1 id="state">starting</h1><script type="module" src="/assets/index-01234567.js"></script></body></html>""",
    "assets/index-01234567.js": b"""const state = document.getElementById("state");
const config = await (await fetch("/config.json")).json();
const name = config.homeserverList[config.defaultHomeserver];
const found = await (await fetch(`https://${name}/.well-known/matrix/client`)).json();
const versions = await (await fetch(found["m.homeserver"].base_url + "/_matrix/client/versions")).json();
state.textContent = `${global === window && name} speaks ${versions.versions.at(-1)}`;""",
    "config.json": b'{"homeserverList": ["matrix.org"]}',
    "sw.js": b"",
}


def real_cinny() -> Path | None:
    """The archive of the real Cinny, if CINNY_ARCHIVE names it; None: the stand-in is deployed."""
    named = os.environ.get("CINNY_ARCHIVE")
    return Path(named).expanduser().resolve() if named else None


def cinny_archive(directory: Path) -> Path:
    """An archive like Cinny's, made in the directory."""
    path = directory / "cinny.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        for name, content in CINNY_FILES.items():
            _add(archive, f"dist/{name}", content)
    return path


# What Ketesa does in a browser, as far as the door matters: it reads its configuration, logs in to the homeserver that is in it,
# and asks its admin API with the token, in the header in which a browser sends the password of a site.
KETESA_FILES = {
    "index.html": b"""<!doctype html><html lang="en"><head><meta charset="utf-8"><title>stand-in</title>
<style>h1 { color: rgb(24, 88, 213); }</style></head>
<body><h1 id="state">starting</h1>
<form><input name="username"><input name="password" type="password"><button>Go on</button></form>
<script type="module" src="./assets/main-01234567.js"></script></body></html>""",
    "assets/main-01234567.js": b"""const state = document.getElementById("state");
const ask = async (path, options) => (await fetch(localStorage.base_url + path, options)).json();
const config = await (await fetch("config.json")).json();
localStorage.base_url = config.restrictBaseUrl;
state.textContent = `Sign in, ${(await ask("/_matrix/client/versions")).versions.at(-1)}`;
document.querySelector("form").onsubmit = async (event) => {
  event.preventDefault();
  const { username, password } = event.target.elements;
  const login = { type: "m.login.password", identifier: { type: "m.id.user", user: username.value }, password: password.value };
  const { access_token } = await ask("/_matrix/client/v3/login", { method: "POST", body: JSON.stringify(login) });
  const found = await ask("/_synapse/admin/v2/users", { headers: { Authorization: `Bearer ${access_token}` } });
  state.textContent = found.users.map((user) => user.name).join(" ");
};""",
    "auth-callback/index.html": b"<!doctype html><title>stand-in of the way back from MAS</title>",
    "config.json": b"{}",
}


def real_ketesa() -> Path | None:
    """The archive of the real Ketesa, if KETESA_ARCHIVE names it; None: the stand-in is deployed."""
    named = os.environ.get("KETESA_ARCHIVE")
    return Path(named).expanduser().resolve() if named else None


def ketesa_archive(directory: Path) -> Path:
    """An archive like Ketesa's, made in the directory."""
    path = directory / "ketesa.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        for name, content in KETESA_FILES.items():
            _add(archive, f"ketesa/{name}", content)
    return path


# As much of uPlot as the overview uses, without the drawing.
UPLOT_FILES = {
    "dist/uPlot.iife.min.js": b"""class uPlot {
  constructor(options, data, place) {
    this.root = document.createElement("pre");
    this.root.textContent = options.series.map(({ label }, index) => `${label}: ${data[index].at(-1)}`).join("\\n");
    this.width = options.width;
    place.append(this.root);
  }
  setLegend() {}
  setSize({ width }) { this.width = width; }
  destroy() { this.root.remove(); }
  static paths = { bars: () => null };
}""",
    "dist/uPlot.min.css": b".uplot {}",
}


def real_uplot() -> Path | None:
    """The archive of the real uPlot, if UPLOT_ARCHIVE names it; None: the stand-in is deployed."""
    named = os.environ.get("UPLOT_ARCHIVE")
    return Path(named).expanduser().resolve() if named else None


def uplot_archive(directory: Path) -> Path:
    """An archive like uPlot's, made in the directory."""
    path = directory / "uplot.tgz"
    with tarfile.open(path, "w:gz") as archive:
        for name, content in UPLOT_FILES.items():
            _add(archive, f"package/{name}", content)
    return path


class Signer:
    """A key of OpenPGP that signs files, in a directory of its own."""

    def __init__(self, directory: Path, name: str = "Stand-in") -> None:
        self.home = directory / f"gnupg-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
        self.home.mkdir(mode=0o700)
        self._gpg("--passphrase", "", "--quick-generate-key", name, "ed25519", "sign", "never")

    def _gpg(self, *arguments: str | Path) -> bytes:
        command: list[str | Path] = [
            "gpg",
            "--homedir",
            self.home,
            "--batch",
            "--quiet",
            "--yes",
            "--pinentry-mode",
            "loopback",
        ]
        return subprocess.run([*command, *arguments], check=True, capture_output=True).stdout

    @property
    def fingerprint(self) -> str:
        # The line after that of the key itself.
        lines = self._gpg("--with-colons", "--list-keys").decode().splitlines()
        [after] = [number for number, line in enumerate(lines, 1) if line.startswith("pub:")]
        return lines[after].split(":")[9]

    @property
    def keys(self) -> bytes:
        return self._gpg("--armor", "--export")

    def sign(self, file: Path) -> bytes:
        return self._gpg("--armor", "--output", "-", "--detach-sign", file)

    def close(self) -> None:
        """End the agent that gpg has started."""
        subprocess.run(["gpgconf", "--homedir", self.home, "--kill", "all"], check=False)


def _add(archive: tarfile.TarFile, name: str, content: bytes, mode: int = 0o644) -> None:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode = len(content), mode
    archive.addfile(entry, io.BytesIO(content))
