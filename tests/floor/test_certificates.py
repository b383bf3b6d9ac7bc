"""The cluster's authority."""

from __future__ import annotations

import base64
import datetime as dt
import traceback
from typing import TYPE_CHECKING

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization

from enginery import _certificates
from enginery._certificates import CA_FILE, CA_KEY_FILE, Authority, make_request
from enginery.errors import CertificateError

if TYPE_CHECKING:
    from pathlib import Path


def names(pem: bytes) -> list[str]:
    extension = x509.load_pem_x509_certificate(pem).extensions.get_extension_for_class(
        x509.SubjectAlternativeName
    )
    return [str(name.value) for name in extension.value]


def test_it_is_kept(tmp_path: Path) -> None:
    """The second start has the same authority, and its key is private."""
    first = Authority.load_or_create(tmp_path)
    assert Authority.load_or_create(tmp_path).ca_pem == first.ca_pem
    assert (tmp_path / "ca-key.pem").stat().st_mode & 0o777 == 0o600


def test_names_of_a_server(tmp_path: Path) -> None:
    """The fixed name, loopback, and what is advertised, IP addresses as such."""
    _, pem = Authority.load_or_create(tmp_path).issue_server("controller.c.enginery", "node7", "10.0.0.7")
    expected = ["controller.c.enginery", "localhost", "127.0.0.1", "::1", "node7", "10.0.0.7"]
    assert names(pem) == expected


def test_a_request_gets_the_names_that_the_authority_chooses(tmp_path: Path) -> None:
    """The host keeps its key; the certificate is for that key."""
    authority = Authority.load_or_create(tmp_path)
    key, request = make_request()
    certificate = x509.load_pem_x509_certificate(authority.sign_request(request, "host.c.enginery"))
    certificate.verify_directly_issued_by(x509.load_pem_x509_certificate(authority.ca_pem.encode()))
    assert certificate.public_key() == x509.load_pem_x509_csr(request).public_key()
    assert b"PRIVATE" in key
    assert b"PRIVATE" not in request


@pytest.mark.parametrize(
    "name", ["controller.c.enginery", "CONTROLLER.c.Enginery", "*.c.enginery", "x.enginery.", "*"]
)
def test_no_request_gets_a_name_of_the_cluster(tmp_path: Path, name: str) -> None:
    """What a host says of itself must not make it the controller: clients would send it their token."""
    authority = Authority.load_or_create(tmp_path)
    _, request = make_request()
    with pytest.raises(CertificateError, match="reserved"):
        authority.sign_request(request, "host.c.enginery", name)


@pytest.mark.parametrize(
    "request_pem", [b"", b"nonsense", b"-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n-----END"]
)
def test_damaged_requests(tmp_path: Path, request_pem: bytes) -> None:
    """They are refused by name."""
    with pytest.raises(CertificateError, match="certificate request"):
        Authority.load_or_create(tmp_path).sign_request(request_pem, "x")


@pytest.mark.parametrize(
    ("part", "other"),
    [
        (bytes.fromhex("2a8648ce3d030107"), bytes.fromhex("2a8648ce3d030163")),  # P-256, and no known curve
        (bytes.fromhex("020100"), bytes.fromhex("020140")),  # the version
    ],
)
def test_requests_of_unknown_kinds(tmp_path: Path, part: bytes, other: bytes) -> None:
    """They are refused as others are: what cannot be verified is not a defect."""
    head, _, rest = make_request()[1].decode().partition("\n")
    body, _, _ = rest.partition("-----")
    damaged = base64.b64decode(body).replace(part, other, 1)
    pem = f"{head}\n{base64.encodebytes(damaged).decode()}-----END CERTIFICATE REQUEST-----\n"
    with pytest.raises(CertificateError, match="certificate request"):
        Authority.load_or_create(tmp_path).sign_request(pem.encode(), "x")


def test_damaged_or_mixed_files(tmp_path: Path) -> None:
    """An authority that cannot be trusted is an error, never replaced in silence."""
    Authority.load_or_create(tmp_path)
    (tmp_path / "other").mkdir()
    Authority.load_or_create(tmp_path / "other")
    (tmp_path / "other" / "ca.pem").replace(tmp_path / "ca.pem")
    with pytest.raises(CertificateError, match="do not belong together"):
        Authority.load_or_create(tmp_path)
    (tmp_path / "ca.pem").write_text("nonsense")
    with pytest.raises(CertificateError, match="damaged"):
        Authority.load_or_create(tmp_path)
    (tmp_path / "ca.pem").chmod(0o644)
    with pytest.raises(CertificateError, match="chmod 600"):
        Authority.load_or_create(tmp_path)


def test_a_damaged_key_is_not_shown(tmp_path: Path) -> None:
    """The library's errors show parts of what it read: ours do not, their tracebacks neither."""
    Authority.load_or_create(tmp_path)
    key = (tmp_path / CA_KEY_FILE).read_text()
    lines = key.splitlines()
    (tmp_path / CA_KEY_FILE).write_text(key.replace("END PRIVATE KEY", f"END {lines[1]}"))
    with pytest.raises(CertificateError, match="damaged") as caught:
        Authority.load_or_create(tmp_path)
    assert lines[1] not in "".join(traceback.format_exception(caught.value))


def test_a_certificate_whose_key_is_lost_is_not_replaced(tmp_path: Path) -> None:
    """Hosts and clients elsewhere trust it: who runs the cluster decides. A lost certificate is made anew."""
    Authority.load_or_create(tmp_path)
    (tmp_path / CA_KEY_FILE).unlink()
    before = (tmp_path / CA_FILE).read_bytes()
    with pytest.raises(CertificateError, match="its key is not: stop the cluster, remove both"):
        Authority.load_or_create(tmp_path)
    assert (tmp_path / CA_FILE).read_bytes() == before
    (tmp_path / CA_FILE).unlink()
    Authority.load_or_create(tmp_path)


def test_a_certificate_with_a_damaged_key_in_it(tmp_path: Path) -> None:
    """It can be parsed, but not used: it is refused as damaged all the same."""
    Authority.load_or_create(tmp_path)
    certificate = x509.load_pem_x509_certificate((tmp_path / CA_FILE).read_bytes())
    der = certificate.public_bytes(serialization.Encoding.DER)
    point = certificate.public_key().public_bytes(
        serialization.Encoding.X962, serialization.PublicFormat.UncompressedPoint
    )
    spoilt = der.replace(point, point[:1] + bytes(len(point) - 1))
    pem = b"-----BEGIN CERTIFICATE-----\n" + base64.encodebytes(spoilt) + b"-----END CERTIFICATE-----\n"
    (tmp_path / CA_FILE).write_bytes(pem)
    with pytest.raises(CertificateError, match="damaged"):
        Authority.load_or_create(tmp_path)


def test_a_certificate_with_a_damaged_name(tmp_path: Path) -> None:
    """What the library would find when it signs is found when the controller starts: the signature tells."""
    Authority.load_or_create(tmp_path)
    certificate = x509.load_pem_x509_certificate((tmp_path / CA_FILE).read_bytes())
    der = certificate.public_bytes(serialization.Encoding.DER)
    spoilt = base64.encodebytes(der.replace(b"authority", b"auth\xfarity"))
    pem = b"-----BEGIN CERTIFICATE-----\n" + spoilt + b"-----END CERTIFICATE-----\n"
    (tmp_path / CA_FILE).write_bytes(pem)
    with pytest.raises(CertificateError, match="damaged"):
        Authority.load_or_create(tmp_path)


def test_an_old_authority_is_replaced_in_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It never signs what outlives it."""
    past = dt.datetime.now(dt.UTC) - dt.timedelta(days=3650 - 700)
    with monkeypatch.context() as patch:
        patch.setattr(_certificates, "_now", lambda: past)
        old = Authority.load_or_create(tmp_path)
    assert Authority.load_or_create(tmp_path).ca_pem != old.ca_pem
