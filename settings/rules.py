"""Checks of the inventory and the settings taken together; a line for each mistake."""

import difflib
import re
from collections.abc import Iterable, Iterator

from roles import COTURN, ROLES
from settings.admin import Choices as Pages
from settings.backup import Choices as Backups
from settings.backup import Target, folder_of
from settings.coturn import LONGEST_NAME
from settings.deployment import PYTHON_OF_DEBIAN, Settings
from settings.mas import Choices as Accounts
from settings.synapse import Choices as Homeserver


def mistakes(settings: Settings) -> list[str]:
    """A line for each contradiction in the inventory and the settings."""
    return [*_inventory(settings), *_domains(settings), *_choices(settings)]


def misspelt_roles(groups: Iterable[str]) -> list[str]:
    """A line for each group that looks like a role misspelt."""
    lines = []
    for group in groups:
        near = difflib.get_close_matches(group, list(ROLES), n=1, cutoff=0.75)
        if group not in ROLES and near:
            lines.append(f"the group {group} is no role; did you mean {near[0]}?")
    return lines


def _inventory(settings: Settings) -> Iterator[str]:
    where = f"inventories/{settings.deployment}.py"
    if not any(settings.roles.values()):
        yield f"{where}: no machine has a role; the roles are {', '.join(ROLES)}"
    for role in ROLES.values():
        machines = settings.roles[role.name]
        if not machines:
            continue
        if len(machines) > 1 and not role.several:
            yield f"{where}: {role.name} has {len(machines)} machines ({', '.join(machines)}), but one is allowed"
        for needed in role.needs:
            if not settings.roles[needed]:
                yield f"{where}: {role.name} needs the role {needed}, which no machine has"
            elif needed in role.beside and machines[0] not in settings.roles[needed]:
                yield f"{where}: {role.name} and {needed} must be on the same machine"
        if role.own_certificate and settings.choices.tls != "files" and machines[0] not in settings.roles["caddy"]:
            yield (
                f"{where}: {machines[0]} has {role.name}, so it needs the role caddy for the certificate "
                '(or tls = "files")'
            )
    release = settings.machine.release
    for role in settings.played:
        # Of other systems preflight has a message.
        if release in PYTHON_OF_DEBIAN and release not in role.debian:
            yield (
                f"{where}: {settings.name} has Debian {release}, which has no package of {role.title}: take it out of the group "
                f"{role.name}, or install Debian {' or '.join(role.debian)}"
            )
    folders: dict[str, str] = {}
    for machine in settings.roles["backup"]:
        other = folders.setdefault(folder_of(machine), machine)
        if other != machine:
            yield (
                f"{where}: {other} and {machine} would have the same folder at the target of the backup, {folder_of(machine)}: "
                "change one of the names"
            )
    remote = [
        name for role in ROLES.values() if role.database for name in settings.roles[role.name] if name != settings.name
    ]
    if settings.name == "@local" and settings.here("postgres") and remote and not settings.choices.address:
        yield f'{where}: write beside "@local" where {remote[0]} reaches its database: {{"address": "10.0.0.2"}}'


def _named(settings: Settings) -> Iterator[tuple[str, str, bool]]:
    """For each domain name: its setting, the name, and whether it is used."""
    yield "server_name", settings.server_name, True
    for role in ROLES.values():
        for domain in role.domains:
            yield domain.setting, settings.name_of(role, domain), settings.uses(role, domain)


def _domains(settings: Settings) -> Iterator[str]:
    used: dict[str, str] = {}
    for name, domain, in_use in _named(settings):
        if in_use and domain in used:
            yield (
                f"group_data/{settings.deployment}.py: {name} and {used[domain]} are both {domain}; "
                "each needs a name of its own"
            )
        if in_use:
            used.setdefault(domain, name)


def _choices(settings: Settings) -> Iterator[str]:
    where, choices = f"group_data/{settings.deployment}.py", settings.choices
    for name, domain, _ in _named(settings):
        if re.search(r"(^|\.)example\.(com|org|net)$", domain):
            yield f"{where}: {name} is still {domain}, which belongs to nobody; set it to your own domain name"
            return
    if choices.tls == "acme" and settings.exists("caddy") and not (choices.admin_email or choices.acme.email):
        yield f'{where}: admin_email is missing: the certificate authority wants an address (tls = "acme")'
    relay = settings.domain(COTURN)
    if settings.exists("coturn") and len(relay) > LONGEST_NAME:
        yield (
            f"{where}: turn_domain is {relay}, which has {len(relay)} characters, and coturn takes at most {LONGEST_NAME}: "
            "set it to a shorter name"
        )
    homeserver = settings.section(Homeserver)
    if homeserver.federation_port_8448 and not homeserver.federation:
        yield f"{where}: federation_port_8448 is True, but federation is False: there is nothing to serve on that port"
    captcha = homeserver.captcha
    protected = choices.smtp_host or captcha or homeserver.registration_unprotected
    if homeserver.registration == "open" and not protected:
        yield (
            f'{where}: registration = "open" without smtp_host and captcha: nobody would confirm an e-mail address or solve '
            'anything, and programs would make accounts; set smtp_host or captcha, use "token", or, if that is what you want, '
            "set registration_unprotected = True"
        )
    if captcha and homeserver.registration != "open":
        yield (
            f'{where}: captcha is set, but registration is "{homeserver.registration}": it is for accounts that everybody may '
            'make; set registration = "open", or captcha = None'
        )
    if captcha and captcha.service != "recaptcha_v2" and not settings.exists("mas"):
        yield (
            f"{where}: captcha['service'] = \"{captcha.service}\" needs the role mas, and no machine has it: Synapse alone knows "
            '"recaptcha_v2" only'
        )
    pages = settings.section(Pages)
    if settings.exists("admin") and pages.admin_certificates and not pages.admin_networks:
        yield (
            f"{where}: admin_certificates is True, but admin_networks is empty: the tunnel, the only way to the pages, asks for "
            'none; set admin_networks, to ["0.0.0.0/0", "::/0"] for all who have a certificate'
        )
    if homeserver.forget_left_rooms and not homeserver.forgotten_room_days:
        yield f"{where}: forget_left_rooms is True, but forgotten_room_days is None: no room would be removed"
    if homeserver.stale_device_days and settings.exists("mas"):
        yield (
            f"{where}: stale_device_days = {homeserver.stale_device_days} is for accounts in Synapse, and the role mas has them: "
            "set inactive_session_expiration in /etc/mas/local.yaml"
        )
    for setting in ("reports_to", "alerts_to"):
        for each in getattr(homeserver, setting) or ():
            if each.partition(":")[2] != settings.server_name:
                yield (
                    f"{where}: {setting} has {each}, who is not of this homeserver: "
                    f"{setting.removesuffix('_to')} are for accounts such as @anna:{settings.server_name}"
                )
    if homeserver.alerts_to and not settings.exists("monitoring"):
        yield f"{where}: alerts_to names who is told what the role monitoring finds, and no machine has it"
    providers = [provider.id for provider in settings.section(Accounts).sso]
    if providers and not settings.exists("mas"):
        yield f"{where}: sso has providers to sign in with, which need the role mas, and no machine has it"
    for provider in sorted({each for each in providers if providers.count(each) > 1}):
        yield f"{where}: sso has two providers with the id {provider}; each needs its own"
    backups = settings.section(Backups)
    if settings.exists("backup") and not backups.backup_target:
        yield f'{where}: backup_target is missing: where backups go, such as "/mnt/backup", the directory of another disk'
    elif (
        settings.exists("backup")
        and Target.parse(backups.backup_target or "").kind == "sftp"
        and not backups.backup_sftp_host_key
    ):
        yield (
            f"{where}: backup_sftp_host_key is missing: the public host key of the machine with the backups, such as "
            '"ssh-ed25519 AAAA...", from its file /etc/ssh/ssh_host_ed25519_key.pub'
        )
    if choices.tls == "files" and not choices.tls_files:
        yield f'{where}: tls_files is missing: tls = "files" needs {{"certificate": "/path", "key": "/path"}}'
