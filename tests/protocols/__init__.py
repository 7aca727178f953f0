"""What a relay and another homeserver speak: for the verification of a live deployment (tests/host) and for the tests."""
