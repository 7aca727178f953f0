"""Element Web: files of its release, and its configuration. Caddy serves both."""

from pyinfra import host

from operations import files, releases
from operations.files import Directory, Text
from settings import settings_of
from settings.element import Element

settings = settings_of(host)
element = settings.view(Element)

files.present(
    name="Configure Element Web",
    entries=[
        Directory(element.directory, mode="755"),
        Text(f"{element.directory}/config.json", element.written, mode="644"),
    ],
)
releases.installed(
    name="Install Element Web",
    file=releases.obtain(element.release, settings.machine.releases),
)
