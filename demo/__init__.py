"""`make demo`: a throw-away Debian host with the whole homeserver on it."""
