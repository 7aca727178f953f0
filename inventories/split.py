"""Three machines: the database, the homeserver with its web names, the relay. Replace them with your machines.

address: where the others reach a machine, best in a private network; without it they use the address that you connect to.
"""

_database = ("db.example.org", {"ssh_user": "root", "address": "10.0.0.2"})
_homeserver = ("matrix.example.org", {"ssh_user": "root", "address": "10.0.0.3"})
_relay = ("turn.example.org", {"ssh_user": "root"})

postgres = [_database]
synapse = [_homeserver]
mas = [_homeserver]
sydent = [_homeserver]
rtc = [_homeserver]
element = [_homeserver]
admin = [_homeserver]
coturn = [_relay]
caddy = [_homeserver, _relay]
firewall = [_database, _homeserver, _relay]
bans = [_homeserver]
updates = [_database, _homeserver, _relay]
