"""What clients think of a certificate."""

import datetime

from cryptography import x509

WEEK = datetime.timedelta(days=7)


def valid_names(certificate: x509.Certificate) -> list[str]:
    """The names that a certificate is for."""
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return []
    return names.get_values_for_type(x509.DNSName)


def is_for(certificate: x509.Certificate, name: str) -> bool:
    """Whether a certificate is for the name."""
    return bool({name, f"*.{name.partition('.')[2]}"} & set(valid_names(certificate)))


def certificate_problem(certificate: x509.Certificate, name: str) -> str:
    """What is wrong with a certificate for the name; empty if nothing is.

    Caddy renews a certificate when a third of its lifetime is left, whether that is 90 days or 12 hours. With less than a
    quarter left, and less than a week, the renewal must have failed.
    """
    if not is_for(certificate, name):
        return f"its certificate is for {', '.join(valid_names(certificate)) or 'nobody'}"
    begin, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    now = datetime.datetime.now(datetime.UTC)
    if now < begin:
        return f"its certificate is valid only from {begin:%Y-%m-%d %H:%M} UTC on"
    if end - now < min(WEEK, (end - begin) / 4):
        return f"its certificate {'expired' if end < now else 'expires'} on {end:%Y-%m-%d at %H:%M} UTC and was not renewed"
    return ""
