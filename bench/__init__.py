"""Measurements of a deploy, a re-run, memory, requests through Caddy, the relay and federation: `python -m bench`."""
