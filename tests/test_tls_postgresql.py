"""TLS and the logins that depend on it, with a PostgreSQL that supports TLS, compared with libpq.

The servers of the wheel do not; these tests use the operating system's if there is one.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import ssl
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
import trustme

import score.distlock
from score.distlock import DatabaseError
from score.init import ConfigurationError

from .support.proxy import TLS_REQUEST
from .support.server import PASSWORD, Server

QUOTED = "s3cret%3Ap%40ss%2Fword"

#: How the server's certificate is signed: the hash for channel binding depends on it.
SIGNATURES = {
    "RSA, SHA-256": "rsa:2048 -sha256",
    "RSA, SHA-384": "rsa:2048 -sha384",
    "RSA, SHA-512": "rsa:2048 -sha512",
    "ECDSA, SHA-256": "ec -pkeyopt ec_paramgen_curve:P-256 -sha256",
    "ECDSA, SHA-384": "ec -pkeyopt ec_paramgen_curve:P-384 -sha384",
    "ECDSA, SHA-512": "ec -pkeyopt ec_paramgen_curve:P-256 -sha512",
}

RULES = """
local all all trust
hostssl all by_password 127.0.0.1/32 scram-sha-256
hostssl all by_certificate 127.0.0.1/32 cert
host all everywhere 127.0.0.1/32 scram-sha-256
"""


def programs() -> Path | None:
    """The folder of a PostgreSQL with OpenSSL."""
    for found in sorted(Path("/usr/lib/postgresql").glob("*/bin/pg_config"), reverse=True):
        if not (found.parent / "initdb").exists():
            continue
        told = subprocess.run([found, "--configure"], capture_output=True, text=True, check=False)
        if "openssl" in told.stdout:
            return found.parent
    return None


class Encrypted:
    """A server whose certificates can be changed."""

    def __init__(self, server: Server, folder: Path) -> None:
        self.server = server
        self.folder = folder
        self.authority = trustme.CA()
        self.roots = self.file("roots.crt", self.authority.cert_pem)
        self.give("ca.crt", self.authority.cert_pem.bytes())
        (server.data / "pg_hba.conf").write_text(RULES)
        self.use(SIGNATURES["RSA, SHA-256"])
        with (server.data / "postgresql.conf").open("a") as config:
            config.write("ssl = on\nssl_ca_file = 'ca.crt'\n")
        with psycopg.connect(server.url(), autocommit=True) as admin:
            for user in ("by_password", "by_certificate", "everywhere"):
                admin.execute(f"CREATE ROLE {user} SUPERUSER LOGIN PASSWORD '{PASSWORD}'".encode())
            admin.execute("SELECT pg_reload_conf()")
        self.wait_for_tls()

    def file(self, name: str, *blobs: trustme.Blob) -> str:
        path = self.folder / name
        path.write_bytes(b"".join(blob.bytes() for blob in blobs))
        path.chmod(0o600)
        return str(path)

    def give(self, name: str, content: bytes) -> None:
        path = self.server.data / name
        path.write_bytes(content)
        path.chmod(0o600)
        if self.server.user is not None:
            shutil.chown(path, self.server.user)

    def use(self, signature: str) -> None:
        """Makes the server use a certificate with this signature."""
        command = f"openssl req -x509 -nodes -days 3 -subj /CN=localhost -newkey {signature}"
        command += " -addext subjectAltName=DNS:localhost -keyout server.key -out server.crt"
        subprocess.run(command.split(), cwd=self.folder, check=True, capture_output=True)
        for name in ("server.key", "server.crt"):
            self.give(name, (self.folder / name).read_bytes())

    def reload(self) -> None:
        with psycopg.connect(self.server.url(), autocommit=True) as admin:
            admin.execute("SELECT pg_reload_conf()")
        wanted = ssl.PEM_cert_to_DER_cert((self.folder / "server.crt").read_text())
        while self.wait_for_tls() != wanted:
            pass

    def wait_for_tls(self) -> bytes:
        """Waits until the server presents a certificate; returns it."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        while True:
            with socket.create_connection(("127.0.0.1", self.server.port)) as plain:
                plain.sendall(TLS_REQUEST)
                if plain.recv(1) == b"S":
                    with context.wrap_socket(plain) as secured:
                        shown = secured.getpeercert(binary_form=True)
                        assert shown is not None
                        return shown


@pytest.fixture(scope="module")
def encrypted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Encrypted]:
    found = programs()
    if found is None:
        pytest.skip("there is no PostgreSQL with OpenSSL below /usr/lib/postgresql")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DISTLOCK_TEST_POSTGRESQL", str(found))
        server = Server()
    yield Encrypted(server, tmp_path_factory.mktemp("encrypted"))
    server.destroy()


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A home without the certificates of the user who runs the tests."""
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in list(os.environ):
        if name.startswith("PGSSL") or name == "PGCHANNELBINDING":
            monkeypatch.delenv(name)


def outcomes(user: str, port: int, **options: str) -> tuple[str, str]:
    """The results of libpq and of this module: ``connected``, or the error."""
    try:
        psycopg.connect(
            host="localhost",
            port=port,
            user=user,
            password=PASSWORD,
            dbname="postgres",
            gssencmode="disable",
            **options,  # type: ignore[arg-type]
        ).close()
        libpq = "connected"
    except psycopg.OperationalError as error:
        libpq = str(error)
    query = "&".join(f"{key}={value}" for key, value in options.items())
    url = f"postgresql://{user}:{QUOTED}@localhost:{port}/postgres?{query}"
    try:
        score.distlock.init({"sqlalchemy.url": url})
        ours = "connected"
    except (DatabaseError, ConfigurationError) as error:
        ours = str(error)
    return libpq, ours


class Between:
    """A man in the middle, with a certificate, who decrypts and forwards everything."""

    def __init__(self, port: int, authority: trustme.CA) -> None:
        self.target = port
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert("localhost").configure_cert(self.context)
        self.onwards = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        self.onwards.check_hostname = False
        self.onwards.verify_mode = ssl.CERT_NONE
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        try:
            assert client.recv(8, socket.MSG_WAITALL) == TLS_REQUEST
            client.sendall(b"S")
            server = socket.create_connection(("127.0.0.1", self.target))
            server.sendall(TLS_REQUEST)
            assert server.recv(1) == b"S"
            ends = (
                self.context.wrap_socket(client, server_side=True),
                self.onwards.wrap_socket(server),
            )
            back = threading.Thread(target=self._copy, args=ends[::-1], daemon=True)
            back.start()
            self._copy(*ends)
            back.join()
        except OSError:
            client.close()

    @staticmethod
    def _copy(source: ssl.SSLSocket, target: ssl.SSLSocket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                target.sendall(data)
        for one in (source, target):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)


@pytest.mark.parametrize("signature", SIGNATURES)
def test_a_login_with_a_password_is_bound_to_the_certificate(
    encrypted: Encrypted, signature: str
) -> None:
    """SCRAM-SHA-256-PLUS: `require` allows nothing else."""
    encrypted.use(SIGNATURES[signature])
    encrypted.reload()
    for binding in ("require", "prefer", "disable"):
        options = {"sslmode": "require", "channel_binding": binding}
        assert outcomes("by_password", encrypted.server.port, **options) == ("connected",) * 2


def test_somebody_in_between_is_noticed(encrypted: Encrypted) -> None:
    """`sslmode=require` accepts any certificate, but channel binding reveals a different one."""
    between = Between(encrypted.server.port, encrypted.authority)
    try:
        for binding in ("require", "prefer"):
            options = {"sslmode": "require", "channel_binding": binding}
            libpq, ours = outcomes("by_password", between.port, **options)
            assert "channel binding" in libpq
            assert "channel binding" in ours
        options = {"sslmode": "require", "channel_binding": "disable"}
        assert outcomes("by_password", between.port, **options) == ("connected",) * 2
    finally:
        between.close()


@pytest.mark.parametrize("mode", ["disable", "allow", "prefer", "require"])
@pytest.mark.parametrize("user", ["by_password", "everywhere"])
def test_rules_of_the_server_come_to_what_they_do_with_libpq(
    encrypted: Encrypted, user: str, mode: str
) -> None:
    """One user must use TLS (``hostssl``), another must not."""
    libpq, ours = outcomes(user, encrypted.server.port, sslmode=mode)
    assert (ours == "connected") == (libpq == "connected")
    if (user, mode) == ("by_password", "disable"):
        assert "no encryption" in ours
        assert "sslmode=require" in ours
    else:
        assert ours == "connected"


def test_a_certificate_instead_of_a_password(encrypted: Encrypted) -> None:
    options = {"sslmode": "require"}
    libpq, ours = outcomes("by_certificate", encrypted.server.port, **options)
    assert "certificate" in libpq
    assert "sslcert" in ours
    client = encrypted.authority.issue_cert("client", common_name="by_certificate")
    options["sslcert"] = encrypted.file("client.crt", *client.cert_chain_pems)
    options["sslkey"] = encrypted.file("client.key", client.private_key_pem)
    assert outcomes("by_certificate", encrypted.server.port, **options) == ("connected",) * 2
    libpq, ours = outcomes("everywhere", encrypted.server.port, **options)
    assert libpq == ours == "connected"
