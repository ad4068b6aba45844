"""TLS, with servers of every kind, compared with libpq."""

from __future__ import annotations

import contextlib
import datetime
import shutil
import ssl
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import quote

import psycopg
import pytest
import trustme

import score.distlock
from score.distlock import DatabaseError, DatabaseUnavailable
from score.init import ConfigurationError

from .support.line import Background, wait_until_waiting
from .support.server import Server
from .support.tls import TlsServer
from .test_waiting import SOON

MODES = ["disable", "allow", "prefer", "require", "verify-ca", "verify-full"]
SERVERS = [
    "right",
    "by address",
    "by common name",
    "wildcard",
    "other host",
    "expired",
    "self-signed",
    "unknown authority",
    "by intermediate",
    "without its intermediate",
    "only TLS",
    "no TLS",
]
ROOTS = [
    "none",
    "authority",
    "other authority",
    "the certificate itself",
    "intermediate",
    "authority and intermediate",
]


class Certificates:
    """An authority, another one, and server certificates of all kinds, as files."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.authority = trustme.CA()
        self.other = trustme.CA()
        self.intermediate = self.authority.create_child_ca()
        self.client = self.authority.issue_cert("postgres", common_name="postgres")
        self.empty = folder / "empty"
        self.empty.mkdir()
        command = "openssl req -x509 -newkey rsa:2048 -nodes -days 3 -subj /CN=localhost"
        command += " -addext subjectAltName=DNS:localhost"
        command += " -keyout self-signed.key -out self-signed.crt"
        subprocess.run(command.split(), cwd=folder, check=True, capture_output=True)
        past = datetime.datetime.now(datetime.timezone.utc) - datetime.timedelta(days=1)
        issue = self.authority.issue_cert
        self.servers = {
            "right": issue("localhost"),
            "by address": issue("127.0.0.1"),
            "by common name": issue(common_name="localhost"),
            "wildcard": issue("*.localhost"),
            "other host": issue("elsewhere.example"),
            "expired": issue("localhost", not_after=past),
            "unknown authority": self.other.issue_cert("localhost"),
            "by intermediate": self.intermediate.issue_cert("localhost"),
            "without its intermediate": self.intermediate.issue_cert("localhost"),
        }

    def file(self, name: str, *blobs: trustme.Blob, mode: int = 0o600) -> str:
        path = self.folder / name
        path.write_bytes(b"".join(blob.bytes() for blob in blobs))
        path.chmod(mode)
        return str(path)

    def roots(self, kind: str, server: str) -> str | None:
        if kind == "authority":
            return self.file("authority.crt", self.authority.cert_pem)
        if kind == "other authority":
            return self.file("other.crt", self.other.cert_pem)
        if kind == "intermediate":
            return self.file("intermediate.crt", self.intermediate.cert_pem)
        if kind == "authority and intermediate":
            both = (self.intermediate.cert_pem, self.authority.cert_pem)
            return self.file("both.crt", *both)
        if kind == "the certificate itself":
            if server == "self-signed":
                return str(self.folder / "self-signed.crt")
            leaf = self.servers[server if server in self.servers else "right"]
            return self.file("leaf.crt", leaf.cert_chain_pems[0])
        return None

    def context(self, server: str) -> ssl.SSLContext | None:
        if server == "no TLS":
            return None
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        if server == "self-signed":
            context.load_cert_chain(
                self.folder / "self-signed.crt", self.folder / "self-signed.key"
            )
        else:
            leaf = self.servers[server if server in self.servers else "right"]
            if server == "without its intermediate":
                chain = self.file("leaf.pem", leaf.private_key_pem, leaf.cert_chain_pems[0])
                context.load_cert_chain(chain)
            else:
                leaf.configure_cert(context)
        return context


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("certificates"))


Serve = Callable[..., TlsServer]


@pytest.fixture
def serve(server: Server, certificates: Certificates) -> Iterator[Serve]:
    with contextlib.ExitStack() as stack:

        def serve(kind: str, client: bool = False) -> TlsServer:
            context = certificates.context(kind)
            if client and context is not None:
                context.verify_mode = ssl.CERT_REQUIRED
                certificates.authority.configure_trust(context)
            path = f"{server.folder}/.s.PGSQL.{server.port}"
            started = TlsServer(path, context, only=kind == "only TLS")
            stack.callback(started.close)
            return started

        yield serve


def by_libpq(host: str, server: TlsServer, database: str, options: dict[str, str]) -> str:
    """libpq's result: ``TLS``, ``plain`` or ``refused``."""
    del server.encrypted[:]
    try:
        psycopg.connect(
            host=host,
            port=server.port,
            user="postgres",
            dbname=database,
            gssencmode="disable",
            connect_timeout=10,
            **options,  # type: ignore[arg-type]
        ).close()
    except psycopg.OperationalError:
        return "refused"
    return "TLS" if server.encrypted[-1] else "plain"


def by_us(host: str, server: TlsServer, database: str, options: dict[str, str]) -> str:
    del server.encrypted[:]
    query = "&".join(f"{key}={value}" for key, value in options.items())
    url = f"postgresql://postgres@{host}:{server.port}/{database}?{query}"
    try:
        score.distlock.init({"sqlalchemy.url": url})
    except (DatabaseError, ConfigurationError):
        return "refused"
    return "TLS" if server.encrypted[-1] else "plain"


@pytest.fixture(autouse=True)
def home(certificates: Certificates, monkeypatch: pytest.MonkeyPatch) -> None:
    """A home without the certificates of the user who runs the tests."""
    monkeypatch.setenv("HOME", str(certificates.empty))
    for name in ("PGSSLMODE", "PGSSLROOTCERT", "PGSSLCERT", "PGSSLKEY"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize("roots", ROOTS)
@pytest.mark.parametrize("kind", SERVERS)
def test_each_mode_comes_to_what_libpq_does(
    serve: Serve, certificates: Certificates, database: str, kind: str, roots: str
) -> None:
    server = serve(kind)
    file = certificates.roots(roots, kind)
    hosts = ["localhost", "127.0.0.1"]
    for mode in MODES:
        options = {"sslmode": mode, **({"sslrootcert": file} if file else {})}
        for host in hosts:
            expected = by_libpq(host, server, database, options)
            assert by_us(host, server, database, options) == expected, (mode, host)


@pytest.mark.parametrize("trusted", [True, False])
def test_roots_of_the_operating_system(
    serve: Serve,
    certificates: Certificates,
    database: str,
    monkeypatch: pytest.MonkeyPatch,
    trusted: bool,
) -> None:
    file = certificates.roots("authority" if trusted else "other authority", "right")
    assert file is not None
    monkeypatch.setenv("SSL_CERT_FILE", file)
    server = serve("right")
    for mode in MODES:
        options = {"sslmode": mode, "sslrootcert": "system"}
        for host in ("localhost", "127.0.0.1"):
            assert by_us(host, server, database, options) == by_libpq(
                host, server, database, options
            ), (mode, host)


def test_default_files(serve: Serve, certificates: Certificates, database: str) -> None:
    """``~/.postgresql/root.crt``, ``postgresql.crt`` and ``postgresql.key``."""
    folder = certificates.empty / ".postgresql"
    folder.mkdir()
    try:
        server = serve("right", client=True)
        for name, blob in (
            ("root.crt", certificates.authority.cert_pem),
            ("postgresql.crt", certificates.client.cert_chain_pems[0]),
            ("postgresql.key", certificates.client.private_key_pem),
        ):
            certificates.file(f"empty/.postgresql/{name}", blob)
            for mode in ("require", "verify-ca", "verify-full"):
                options = {"sslmode": mode}
                if name == "postgresql.crt":
                    continue  # without the key libpq refuses, as we do, with another message
                assert by_us("localhost", server, database, options) == by_libpq(
                    "localhost", server, database, options
                ), (name, mode)
        assert by_us("localhost", server, database, {"sslmode": "verify-full"}) == "TLS"
    finally:
        shutil.rmtree(folder)


@pytest.mark.parametrize("kind", ["none", "right", "of another authority", "readable by others"])
def test_client_certificates(
    serve: Serve, certificates: Certificates, database: str, kind: str
) -> None:
    server = serve("right", client=True)
    client = certificates.client
    if kind == "of another authority":
        client = certificates.other.issue_cert("postgres", common_name="postgres")
    mode = 0o644 if kind == "readable by others" else 0o600
    options = {"sslmode": "verify-full", "sslrootcert": certificates.roots("authority", "")}
    if kind != "none":
        options["sslcert"] = certificates.file("client.crt", *client.cert_chain_pems)
        options["sslkey"] = certificates.file("client.key", client.private_key_pem, mode=mode)
    expected = by_libpq("localhost", server, database, options)  # type: ignore[arg-type]
    assert expected == ("TLS" if kind == "right" else "refused")
    assert by_us("localhost", server, database, options) == expected  # type: ignore[arg-type]


def test_the_server_is_told_which_host_is_meant(serve: Serve, database: str) -> None:
    """SNI, which some providers need to find the database; never an address, as in RFC 6066."""
    server = serve("right")
    by_us("localhost", server, database, {"sslmode": "require"})
    by_us("127.0.0.1", server, database, {"sslmode": "require"})
    ours = server.asked_for[:]
    del server.asked_for[:]
    by_libpq("localhost", server, database, {"sslmode": "require"})
    by_libpq("127.0.0.1", server, database, {"sslmode": "require"})
    assert set(ours) == {"localhost", None}
    assert set(server.asked_for) == set(ours)


@pytest.mark.parametrize(
    ("kind", "options", "expected"),
    [
        ("only TLS", "sslmode=disable", ["sslmode=require", "no encryption"]),
        (
            "no TLS",
            "sslmode=require",
            ["with the security that is configured", "does not support TLS"],
        ),
        ("right", "sslmode=verify-full", ["root.crt", "sslrootcert=system"]),
        ("right", "sslmode=verify-ca&sslrootcert=/nowhere.crt", ["/nowhere.crt"]),
        ("right", "sslmode=require&sslrootcert=system", ["verify-full"]),
        ("right", "channel_binding=require&sslmode=disable", ["channel"]),
    ],
)
def test_errors_say_what_to_change(
    serve: Serve, database: str, kind: str, options: str, expected: list[str]
) -> None:
    server = serve(kind)
    url = f"postgresql://postgres:hush@localhost:{server.port}/{database}?{options}"
    with pytest.raises((DatabaseError, ConfigurationError)) as raised:
        score.distlock.init({"sqlalchemy.url": url})
    for part in expected:
        assert part in str(raised.value)
    assert "hush" not in str(raised.value)


def test_another_host_is_named(serve: Serve, certificates: Certificates, database: str) -> None:
    server = serve("other host")
    roots = certificates.roots("authority", "")
    url = (
        f"postgresql://postgres@localhost:{server.port}/{database}"
        f"?sslmode=verify-full&sslrootcert={roots}"
    )
    with pytest.raises(DatabaseUnavailable, match=r"elsewhere\.example.*\"localhost\""):
        score.distlock.init({"sqlalchemy.url": url})


def test_locks_over_tls(
    serve: Serve, certificates: Certificates, database: str, server_url: str
) -> None:
    """With waits, notifications, extensions and large answers."""
    server = serve("right")
    roots = certificates.roots("authority", "")
    url = (
        f"postgresql://postgres@localhost:{server.port}/{database}"
        f"?sslmode=verify-full&sslrootcert={roots}"
    )
    conf = score.distlock.init({"sqlalchemy.url": url, "maxtime": "1s"})
    direct = score.distlock.init({"sqlalchemy.url": server_url})
    token = direct.acquire("name")
    waiter = Background(conf.acquire, "name", timeout=SOON)
    with psycopg.connect(server_url, autocommit=True) as db:
        wait_until_waiting(db, 1)
        direct.release("name", token)
        conf.release("name", waiter.result())
        with contextlib.ExitStack() as stack:
            for number in range(300):
                stack.enter_context(conf.get(f"kept {number}").hold(autoextend=True))
            before = "SELECT min(expires) FROM _score_distlock WHERE name LIKE 'kept %'"
            first = db.execute(before).fetchone()
            while db.execute(before).fetchone() == first:
                pass
    assert server.encrypted
    assert all(server.encrypted)


@pytest.mark.parametrize(
    "required",
    [
        "scram-sha-256",
        "!scram-sha-256",
        "none",
        "!none",
        "password",
        "md5,gss",
        "scram-sha-256,none",
        "!password,!md5",
    ],
)
def test_require_auth_comes_to_what_libpq_does(
    serve: Serve, database: str, tcp_url: str, server: Server, required: str
) -> None:
    """With servers that ask for a password or for nothing, with and without TLS."""
    query = f"?require_auth={quote(required)}"
    trusting = serve("right")
    places = {
        "asks": f"{tcp_url}{query}",
        "asks for nothing": f"{server.url(database)}&{query[1:]}",
        "with TLS": f"postgresql://postgres@localhost:{trusting.port}/{database}{query}",
        "without": f"postgresql://postgres@localhost:{trusting.port}/{database}{query}"
        "&sslmode=disable",
    }
    for place, url in places.items():
        try:
            psycopg.connect(url).close()
            expected = "connected"
        except psycopg.OperationalError:
            expected = "refused"
        try:
            score.distlock.init({"sqlalchemy.url": url})
            found = "connected"
        except DatabaseError as error:
            assert "require_auth" in str(error)
            found = "refused"
        assert found == expected, place
