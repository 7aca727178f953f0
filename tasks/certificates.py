"""Checks that every name is served with its certificate. At the end: if an issuer fails, everything else is deployed."""

from pyinfra import host

from operations import certificates
from settings import settings_of

certificates.checked(name="Check every certificate", served=settings_of(host).served)
