"""How fast it deploys, how fast it finds nothing to do, and how much memory it takes: `python -m bench`."""
