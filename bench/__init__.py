"""How fast it deploys, how fast it finds nothing to do, how much memory it takes, what Caddy costs: `python -m bench`."""
