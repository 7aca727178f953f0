"""The Sliding Sync proxy, archived upstream: only old clients need it. Synapse serves the new ones by itself."""
