"""Every name is served with its certificate. All else is in place by now, whatever an issuer says."""

from pyinfra import host

from operations import certificates
from settings import settings_of

certificates.checked(name="Check every certificate", served=settings_of(host).served)
