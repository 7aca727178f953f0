"""Whether a version of Synapse can run with its database as another version has made it, or will make it.

Each version knows the version of the schema that it makes, and the oldest that may run with it from then on; the database has the
latter in a table. A version that is older than that refuses to start.
https://element-hq.github.io/synapse/latest/development/database_schema.html
"""

from collections.abc import Mapping

from operations.shell import quoted

_PROGRAM = """
import glob, runpy, sys

def schema(directory):
    [path] = glob.glob(f"/opt/matrix-synapse/{directory}/lib/python3*/site-packages/synapse/storage/schema/__init__.py")
    found = runpy.run_path(path)
    return found["SCHEMA_VERSION"], found["SCHEMA_COMPAT_VERSION"]

(one, _), (other, oldest) = map(schema, sys.argv[1:])
try:
    import psycopg2
    cursor = psycopg2.connect(**keywords, connect_timeout=5).cursor()
    cursor.execute("SELECT max(compat_version) FROM schema_compat_version")
    there = cursor.fetchone()[0] or 0
except Exception:
    # It cannot be asked: what the versions say has to do.
    there = 0
print("impossible" if there > other else "one-way" if max(there, oldest) > one else "both ways")
"""


def compatible(keywords: Mapping[str, str | int]) -> str:
    """A shell command for `operations.programs.Program`. keywords: those of a connection to the database, for psycopg2."""
    program = f"keywords = {dict(keywords)!r}{_PROGRAM}"
    return f'runuser -u matrix-synapse -- "/opt/matrix-synapse/$2/bin/python" -c {quoted(program)}'


def reach(keywords: Mapping[str, object]) -> str:
    """A program for Synapse's Python and user, which ends with PostgreSQL's reason if the database does not answer."""
    return f"""import psycopg2, sys
try:
    psycopg2.connect(**{dict(keywords)!r}, connect_timeout=5)
except psycopg2.Error as error:
    sys.exit(str(error).strip())"""
