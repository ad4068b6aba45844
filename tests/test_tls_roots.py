"""Certificates that OpenSSL doubts, with libpq's result compared to ours.

webpki trusts whatever is in the file of roots. OpenSSL, and so libpq, checks whether a root
may issue certificates at all.
"""

from __future__ import annotations

import datetime
import ssl
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import psycopg
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

import score.distlock
from score.distlock import DatabaseError, DatabaseUnavailable
from score.init import ConfigurationError

from .support.server import Server
from .support.tls import TlsServer

DAY = datetime.timedelta(days=1)
CLIENTS_ONLY = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH])
UNKNOWN = x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.4.5"), b"\x05\x00")
NO_CERTIFICATES = x509.KeyUsage(
    digital_signature=True,
    content_commitment=False,
    key_encipherment=False,
    data_encipherment=False,
    key_agreement=False,
    key_cert_sign=False,
    crl_sign=False,
    encipher_only=False,
    decipher_only=False,
)


class Made(NamedTuple):
    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    def pem(self) -> bytes:
        return self.certificate.public_bytes(serialization.Encoding.PEM)


def make(
    name: str,
    issuer: Made | None = None,
    *extensions: x509.ExtensionType,
    begins: datetime.timedelta = -DAY,
    ends: datetime.timedelta = DAY,
) -> Made:
    """A certificate; self-signed without an issuer. Every odd extension is critical."""
    key = ec.generate_private_key(ec.SECP256R1())
    now = datetime.datetime.now(datetime.timezone.utc)
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer.certificate.subject if issuer else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now + begins)
        .not_valid_after(now + ends)
    )
    for extension in extensions:
        builder = builder.add_extension(extension, critical=True)
    return Made(builder.sign(issuer.key if issuer else key, hashes.SHA256()), key)


class Case(NamedTuple):
    leaf: Made
    root: Made
    between: tuple[Made, ...] = ()


AUTHORITY = x509.BasicConstraints(ca=True, path_length=None)
NO_AUTHORITY = x509.BasicConstraints(ca=False, path_length=None)
HERE = x509.SubjectAlternativeName([x509.DNSName("localhost")])


def by(root: Made, *extensions: x509.ExtensionType) -> Case:
    """A server certificate issued by this root."""
    return Case(make("server", root, HERE, *extensions), root)


def alone(made: Made) -> Case:
    """A server's own certificate as the root."""
    return Case(made, made)


def behind_an_intermediate(root: Made, *extensions: x509.ExtensionType) -> Case:
    between = make("between", root, *extensions)
    return Case(make("server", between, HERE), root, (between,))


CASES: dict[str, Callable[[], Case]] = {
    "usual": lambda: by(make("root", None, AUTHORITY)),
    "usual, with an intermediate": lambda: behind_an_intermediate(
        make("root", None, AUTHORITY), AUTHORITY
    ),
    "expired root": lambda: by(make("root", None, AUTHORITY, begins=-2 * DAY, ends=-DAY)),
    "root of tomorrow": lambda: by(make("root", None, AUTHORITY, begins=DAY, ends=2 * DAY)),
    "root is a server's": lambda: by(make("elsewhere", None, NO_AUTHORITY, HERE)),
    "root that does not say what it is": lambda: by(make("root")),
    "root for signatures only": lambda: by(make("root", None, AUTHORITY, NO_CERTIFICATES)),
    "root that allows no intermediate": lambda: behind_an_intermediate(
        make("root", None, x509.BasicConstraints(ca=True, path_length=0)), AUTHORITY
    ),
    "root with something unknown": lambda: by(make("root", None, AUTHORITY, UNKNOWN)),
    "root for clients": lambda: by(make("root", None, AUTHORITY, CLIENTS_ONLY)),
    "server with a client's certificate": lambda: by(make("root", None, AUTHORITY), CLIENTS_ONLY),
    "intermediate is a server's": lambda: behind_an_intermediate(
        make("root", None, AUTHORITY), NO_AUTHORITY
    ),
    "own": lambda: alone(make("localhost", None, HERE)),
    "own, for clients": lambda: alone(make("localhost", None, HERE, NO_AUTHORITY, CLIENTS_ONLY)),
    "own, of tomorrow": lambda: alone(make("localhost", None, HERE, begins=DAY, ends=2 * DAY)),
    "own, with something unknown": lambda: alone(make("localhost", None, HERE, UNKNOWN)),
}


def outcomes(url: str) -> tuple[str, str]:
    """The results with libpq, and with us: "True" or "False" for with or without TLS."""
    query = "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()"
    try:
        with psycopg.connect(url, gssencmode="disable", connect_timeout=10) as db:
            theirs = str(db.execute(query).fetchone() is not None)
    except psycopg.OperationalError as error:
        theirs = str(error)
    try:
        score.distlock.init({"sqlalchemy.url": url}).close()
    except (DatabaseUnavailable, DatabaseError, ConfigurationError) as error:
        return theirs, str(error)
    return theirs, "True"


@pytest.mark.parametrize("name", CASES)
def test_doubtful_certificates_come_to_what_libpq_does(
    server: Server,
    server_url: str,
    name: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    case = CASES[name]()
    chain = tmp_path / "chain.pem"
    key = case.leaf.key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    chain.write_bytes(key + b"".join(made.pem() for made in (case.leaf, *case.between)))
    roots = tmp_path / "roots.crt"
    roots.write_bytes(case.root.pem())
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(chain)
    database = server_url.partition("?")[0].rpartition("/")[2]
    listener = TlsServer(f"{server.folder}/.s.PGSQL.{server.port}", context)
    for mode in ("verify-ca", "verify-full"):
        url = f"postgresql://postgres@localhost:{listener.port}/{database}"
        theirs, ours = outcomes(f"{url}?sslmode={mode}&sslrootcert={roots}")
        assert (ours == "True") == (theirs == "True"), f"{mode}: {theirs} / {ours}"
    listener.close()


class Old(NamedTuple):
    """The files that `openssl x509 -req` creates from a request, following PostgreSQL's manual."""

    certificate: Path
    key: Path
    root: Path

    def context(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.certificate, self.key)
        return context


def old(folder: Path, name: str) -> Old:
    """A certificate of X.509 version 1 and its authority."""
    folder.mkdir()

    def openssl(command: str) -> None:
        subprocess.run(["openssl", *command.split()], cwd=folder, check=True, capture_output=True)

    openssl("req -new -x509 -nodes -subj /CN=root -out root.crt -keyout root.key")
    openssl(f"req -new -nodes -subj /CN={name} -out {name}.csr -keyout {name}.key")
    sign = f"x509 -req -in {name}.csr -CA root.crt -CAkey root.key -CAcreateserial -out {name}.crt"
    openssl(sign)
    made = folder / f"{name}.crt"
    if x509.load_pem_x509_certificate(made.read_bytes()).version != x509.Version.v1:
        openssl(f"{sign} -x509v1")  # newer versions need to be asked
    assert x509.load_pem_x509_certificate(made.read_bytes()).version == x509.Version.v1
    return Old(made, folder / f"{name}.key", folder / "root.crt")


@pytest.mark.parametrize("maximum", ["TLSv1_2", "TLSv1_3"])
def test_certificates_of_version_1_come_to_what_libpq_does(
    server: Server,
    server_url: str,
    maximum: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """webpki reads only version 3."""
    monkeypatch.setenv("HOME", str(tmp_path))
    here, elsewhere = old(tmp_path / "here", "localhost"), old(tmp_path / "elsewhere", "elsewhere")
    database = server_url.partition("?")[0].rpartition("/")[2]
    for made in (here, elsewhere):
        context = made.context()
        context.maximum_version = ssl.TLSVersion[maximum]
        listener = TlsServer(f"{server.folder}/.s.PGSQL.{server.port}", context)
        url = f"postgresql://postgres@localhost:{listener.port}/{database}?sslmode="
        for mode in ("prefer", "require", f"verify-ca&sslrootcert={made.root}"):
            listener.encrypted.clear()
            assert outcomes(url + mode) == ("True", "True"), mode
            assert set(listener.encrypted) == {True}, mode
        # The same name with another key.
        other = (elsewhere if made is here else here).root
        full = f"verify-full&sslrootcert={made.root}"
        for mode in (full, f"verify-ca&sslrootcert={other}", f"prefer&sslrootcert={other}"):
            theirs, ours = outcomes(url + mode)
            assert (ours == "True") == (theirs == "True"), f"{mode}: {theirs} / {ours}"
        listener.close()


def test_a_client_may_have_a_certificate_of_version_1(
    server: Server, server_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    client = old(tmp_path / "client", "postgres")
    context = old(tmp_path / "server", "localhost").context()
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(client.root)
    database = server_url.partition("?")[0].rpartition("/")[2]
    listener = TlsServer(f"{server.folder}/.s.PGSQL.{server.port}", context)
    url = f"postgresql://postgres@localhost:{listener.port}/{database}?sslmode=require"
    identity = f"&sslcert={client.certificate}&sslkey={client.key}"
    assert outcomes(url + identity) == ("True", "True")
    theirs, ours = outcomes(url)
    assert (theirs == "True", ours == "True") == (False, False)
    # With another certificate's key the server refuses.
    other = old(tmp_path / "other", "postgres").key
    theirs, ours = outcomes(url + f"&sslcert={client.certificate}&sslkey={other}")
    assert (theirs == "True", ours == "True") == (False, False)
    listener.close()
