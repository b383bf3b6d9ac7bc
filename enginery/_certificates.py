"""The cluster's own certificate authority: no set-up, no names to configure.

Certificates bear fixed names made of the cluster's id, and who connects always checks those, so that an address
may be an IP, a tunnel or a forwarded port.
"""

from __future__ import annotations

import datetime as dt
import ipaddress
from typing import TYPE_CHECKING

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from enginery._files import read_private, write_private
from enginery.errors import CertificateError

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

CA_FILE = "ca.pem"
CA_KEY_FILE = "ca-key.pem"
_CA_LIFE = dt.timedelta(days=3650)
_SERVER_LIFE = dt.timedelta(days=730)  # issued anew whenever a controller starts or a host registers
_SKEW = dt.timedelta(days=1)  # clocks of other machines may be behind


_OWN_NAMES = ".enginery"


def controller_name(cluster_id: str) -> str:
    """Return the name that the controller's certificate bears."""
    return f"controller.{cluster_id}{_OWN_NAMES}"


def host_name(cluster_id: str) -> str:
    """Return the name that the certificate of every engine host bears."""
    return f"host.{cluster_id}{_OWN_NAMES}"


def make_request() -> tuple[bytes, bytes]:
    """Return a new private key and a signing request for it, both PEM. The key never leaves the process."""
    key = ec.generate_private_key(ec.SECP256R1())
    request = (
        x509.CertificateSigningRequestBuilder().subject_name(_name("engine host")).sign(key, hashes.SHA256())
    )
    return _key_pem(key), request.public_bytes(serialization.Encoding.PEM)


def issuer(certificate_pem: bytes) -> bytes:
    """Return what names the authority that signed a certificate; CertificateError if it is damaged."""
    try:
        certificate = x509.load_pem_x509_certificate(certificate_pem)
        extension = certificate.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier)
    except (ValueError, x509.ExtensionNotFound) as error:
        raise CertificateError(f"the certificate is damaged: {error}") from error
    return extension.value.key_identifier or b""


class Authority:
    """Signs the certificates of one cluster."""

    def __init__(self, key: ec.EllipticCurvePrivateKey, certificate: x509.Certificate) -> None:
        """Take the key pair; see `load_or_create`."""
        self._key = key
        self._certificate = certificate

    @classmethod
    def load_or_create(cls, directory: Path) -> Authority:
        """Return the authority kept in `directory`, made there if there is none or it ends within two years.

        Raises CertificateError if its files cannot be read or do not belong together, or the key is lost.
        """
        found = cls.load(directory)
        if found is None or found._certificate.not_valid_after_utc - _now() < _SERVER_LIFE:
            return cls._create(directory)
        return found

    @classmethod
    def load(cls, directory: Path) -> Authority | None:
        """Return the authority kept in `directory`, None if there is none; raises as `load_or_create`."""
        try:
            certificate_pem = read_private(directory / CA_FILE)
            key_pem = read_private(directory / CA_KEY_FILE)
        except FileNotFoundError as error:
            if (directory / CA_FILE).exists():  # others trust it: to replace it is not for us to decide
                raise CertificateError(
                    f"{directory / CA_FILE} is there, and its key is not: {_REMEDY}"
                ) from error
            return None
        except OSError as error:
            raise CertificateError(f"the cluster's authority cannot be trusted: {error}") from error
        try:
            key = serialization.load_pem_private_key(key_pem, password=None)
            certificate = x509.load_pem_x509_certificate(certificate_pem)
            public_key = certificate.public_key()
            certificate.verify_directly_issued_by(certificate)  # what is parsed late is sound too, then
        except Exception:  # what is damaged has many types there, without a base of their own
            # Without their texts, which show parts of what was read: of the key.
            raise CertificateError(f"{directory / CA_FILE} or its key is damaged: {_REMEDY}") from None
        if not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != public_key:
            raise CertificateError(f"{directory / CA_FILE} and {CA_KEY_FILE} do not belong together: {_REMEDY}")
        return cls(key, certificate)

    @classmethod
    def _create(cls, directory: Path) -> Authority:
        key = ec.generate_private_key(ec.SECP256R1())
        name = _name("Enginery cluster authority")
        identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
        certificate = (
            _builder(name, name, key.public_key(), _CA_LIFE)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_key_usage(signs_certificates=True), critical=True)
            .add_extension(identifier, critical=False)
            .sign(key, hashes.SHA256())
        )
        # The certificate last: a crash between the two leaves no pair, and the next start makes a new one.
        write_private(directory / CA_KEY_FILE, _key_pem(key))
        write_private(directory / CA_FILE, certificate.public_bytes(serialization.Encoding.PEM))
        return cls(key, certificate)

    @property
    def ca_pem(self) -> str:
        """Certificate of the authority, PEM."""
        return self._certificate.public_bytes(serialization.Encoding.PEM).decode()

    def issue_server(self, server_name: str, *others: str) -> tuple[bytes, bytes]:
        """Return a new key and certificate, both PEM, for a server of this process.

        It bears `server_name`, `localhost`, `127.0.0.1`, `::1` and `others`, each a DNS name or an IP address.
        """
        key = ec.generate_private_key(ec.SECP256R1())
        return _key_pem(key), self._sign(key.public_key(), server_name, others)

    def sign_request(self, request_pem: bytes, server_name: str, *others: str) -> bytes:
        """Return a certificate, PEM, for the key of a signing request; names as in `issue_server`.

        The names that the request itself asks for are ignored. Raises CertificateError if it is damaged, or if
        one of `others`, which the one who asks may have chosen, could stand for a server of the cluster.
        """
        try:
            request = x509.load_pem_x509_csr(request_pem)
            key = request.public_key()
            valid = request.is_signature_valid
        except Exception as error:  # what is damaged has many types there, without a base of their own
            raise CertificateError(f"the certificate request is damaged: {error}") from error
        if not valid or not isinstance(key, ec.EllipticCurvePublicKey):
            raise CertificateError("the certificate request is not signed by its own P-256 key")
        for other in others:
            if "*" in other or other.lower().rstrip(".").endswith(_OWN_NAMES):
                raise CertificateError(f"the name {other[:100]!r} is reserved")
        return self._sign(key, server_name, others)

    def _sign(self, key: ec.EllipticCurvePublicKey, server_name: str, others: Iterable[str]) -> bytes:
        names = dict.fromkeys([server_name, "localhost", "127.0.0.1", "::1", *others])
        issuer_key = x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key())
        certificate = (
            _builder(_name("Enginery server"), self._certificate.subject, key, _SERVER_LIFE)
            .add_extension(x509.SubjectAlternativeName([_general_name(name) for name in names]), critical=False)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage(signs_certificates=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
            .add_extension(issuer_key, critical=False)
            .sign(self._key, hashes.SHA256())
        )
        return certificate.public_bytes(serialization.Encoding.PEM)


_REMEDY = "stop the cluster, remove both files and start it again; connection files are then written anew"


def _now() -> dt.datetime:
    return dt.datetime.now(dt.UTC)


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, life: dt.timedelta
) -> x509.CertificateBuilder:
    now = _now()
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _SKEW)
        .not_valid_after(now + life)
    )


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _key_usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
