"""Measurements: duration of a deploy and of a re-run, memory, requests through Caddy, the relay, federation: `python -m bench`."""
