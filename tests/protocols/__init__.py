"""Clients for a relay and for a homeserver's federation API: for the verification (tests/host) and for the other tests."""
