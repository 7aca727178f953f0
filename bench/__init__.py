"""How fast it deploys and finds nothing to do, how much memory it takes, what Caddy and the relay do: `python -m bench`."""
