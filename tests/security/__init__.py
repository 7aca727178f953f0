"""The figures of docs/security.md, measured on complete deployments: `make security`."""
