"""The accounts of a homeserver (manage/homeserver.py), by the admin API of Synapse or of MAS."""
