"""PostgreSQL on a throw-away host."""

from tests.testbed import Host


def query(host: Host, sql: str, database: str = "postgres") -> str:
    """Run SQL as the superuser, in the cluster that psql takes by itself. Returns what it prints: a line for each row."""
    command = f"cd / && runuser -u postgres -- psql -XAtq -v ON_ERROR_STOP=1 -d {database} -f -"
    return host.run(command, stdin=sql).stdout.strip()
