"""The page at https://<server_name>/, in every language that we have. Caddy serves it."""

from pyinfra import host

from operations import files
from operations.files import Absent, Directory, Template
from settings import settings_of
from settings.join_page import LANGUAGES, JoinPage
from settings.synapse import Choices, Synapse

settings = settings_of(host)
synapse, registration = settings.view(Synapse), settings.section(Choices).registration
pages = [
    Template(
        f"{synapse.page}/{language}.html",
        "synapse/page.html",
        mode="644",
        values={"page": JoinPage.of(settings, language, registration)},
    )
    for language in LANGUAGES
]
files.present(
    name="Write the page about joining",
    entries=[Directory(synapse.page, mode="755"), *pages]
    if synapse.site == "page"
    else [Absent(page.path) for page in pages],
)
