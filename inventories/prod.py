"""Which machine plays which role. Replace matrix.example.org with your machine's name or address.

Leave a line out and its component is left out. How to connect goes beside the name, see
https://docs.pyinfra.com/en/3.x/connectors/ssh.html: ("matrix.example.org", {"ssh_user": "admin"}).
"""

_machine = ("matrix.example.org", {"ssh_user": "root"})

postgres = [_machine]
synapse = [_machine]
caddy = [_machine]

# Accounts for Element X: creating them there, logging in on a web page.
mas = [_machine]

# Relay for calls of Element Web and the classic apps.
coturn = [_machine]

# Finding people by e-mail address, in the same clients.
sydent = [_machine]

# Calls of Element X and Element Web.
rtc = [_machine]

# A web client at chat.<server name>.
element = [_machine]

# Notifications on Android without Google's services. It needs Debian 13.
# ntfy = [_machine]
# The administrator's pages in a browser: python manage.py prod admin password, deploy, python manage.py prod admin open.
admin = [_machine]

# Drops what arrives for other ports than those of the roles above, and SSH's.
firewall = [_machine]

# Bans addresses from which wrong passwords come again and again.
bans = [_machine]

# Installs Debian's security updates every night.
updates = [_machine]

# Writes a mail when something is wrong.
monitoring = [_machine]

# Backups. First set backup_target in group_data/prod.py: docs/BACKUP.md.
# backup = [_machine]

# Only clients from before 2025 need it: new ones use the sliding sync that Synapse has itself.
# sliding_sync = [_machine]
