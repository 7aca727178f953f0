"""A homeserver is broken in every way that can be had here, while clients write: `make faults` writes docs/reliability.md."""
