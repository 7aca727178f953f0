"""The system users of the services. First, because the packet filter of the services' ports names them."""

from pyinfra import host

from operations import files
from operations.files import Directory, Template
from operations.templating import TEMPLATES
from roles import SOCKET_GROUP
from settings import settings_of

created = [
    Template(
        role.users_file,
        f"{role.name}/sysusers.conf",
        mode="644",
        values={"socket_group": SOCKET_GROUP, "users": role.users},
        check="systemd-sysusers {}",
    )
    for role in settings_of(host).played
    # Debian's packages make the users of theirs.
    if (TEMPLATES / role.name / "sysusers.conf.j2").exists() and role.users_file
]
if created:
    files.present(
        name="Create the users of the services",
        entries=[Directory("/etc/sysusers.d", mode="755"), *created],
    )
