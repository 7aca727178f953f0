"""operations/sh/certificates.sh: what a deploy says of names without a certificate."""

import subprocess
from pathlib import Path

from operations.shell import shell_file

OPENSSL = '#!/bin/sh\ncase $* in *" -servername good.test "*) echo "-----BEGIN CERTIFICATE-----" ;; *) exit 1 ;; esac\n'


def test_the_last_line_names_what_has_no_certificate(tmp_path: Path) -> None:
    """It is all that `manage.py` and the end of a run repeat."""
    for name, text in {"openssl": OPENSSL, "journalctl": "#!/bin/sh\n", "systemctl": "#!/bin/sh\necho 0\n"}.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    names = "good.test 443 - - x.test 443 - - turn.x.test 5349 - -"
    text = f"PATH={tmp_path}:$PATH\n{shell_file('certificates')}\nawait_certificates 0 {names}"
    done = subprocess.run(["sh", "-euc", text], env={"PATH": "/usr/bin:/bin"}, capture_output=True, text=True)
    *each, last = done.stderr.splitlines()
    assert done.returncode == 1 and len(each) == 2, done.stderr
    assert last == (
        "Still without a certificate: x.test, turn.x.test. Everything else is in place, and certificates arrive by themselves "
        "once they can be issued."
    )
