"""The firewall: what arrives for no port of the deployment is dropped. Before any service runs."""

from pyinfra import host

from operations import files, firewall
from operations.files import Directory, Template
from operations.filters import FIREWALL
from settings import settings_of
from settings.firewall import Firewall

settings = settings_of(host)
view = settings.view(Firewall)

files.present(
    name="Write the rules of the firewall",
    entries=[
        *FIREWALL.entries,
        Directory(view.own_rules, mode="755"),
        Template(firewall.NEW, "firewall/firewall.nft", mode="644", values={"firewall": view}),
    ],
)
firewall.loaded(
    name="Load the firewall",
    own_rules=view.own_rules,
    sudo=settings.machine.user != "root",
)
