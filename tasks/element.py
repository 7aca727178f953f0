"""Element Web and Cinny: files of their releases, and their configuration. Caddy serves both."""

from pyinfra import host

from operations import files, releases
from operations.files import Absent, Copy, Directory, Text
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
if cinny := element.cinny:
    files.present(
        name="Configure Cinny",
        entries=[
            Directory(cinny.directory, mode="755"),
            Text(f"{cinny.directory}/config.json", cinny.written, mode="644"),
        ],
    )
    releases.installed(
        name="Install Cinny",
        file=releases.obtain(cinny.release, settings.machine.releases),
    )
page = [
    Copy(f"{element.stickers_page}/{name}", f"element/{name}", mode="644")
    for name in ("picker.html", "picker.css", "picker.js")
]
files.present(
    name="Write the page for stickers",
    entries=[
        # What is in it is written by `manage.py NAME stickers`. It is there in any case, for the backup.
        Directory(element.stickers_state, mode="755"),
        *(
            [Directory(element.stickers_page, mode="755"), *page]
            if element.stickers
            else [Absent(each.path) for each in page]
        ),
    ],
)
