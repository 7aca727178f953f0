"""The administrator's pages: files of Ketesa's release. Caddy serves them, and asks for the password."""

from pyinfra import host

from operations import releases
from settings import settings_of
from settings.admin import Admin

settings = settings_of(host)
admin = settings.view(Admin)

releases.installed(
    name="Install Ketesa",
    file=releases.obtain(admin.release, settings.machine.releases),
)
