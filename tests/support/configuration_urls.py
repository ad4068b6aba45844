"""What people write into URLs, and where we deliberately differ."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

ASYNCPG = "libpq does not know what SQLAlchemy takes for asyncpg"
NO_LIST = "SQLAlchemy cannot read libpq's list of hosts and ports, which is accepted"
NO_LIST_LIBPQ = "SQLAlchemy's way to write a list of hosts"
LIST = "hosts with ports in one value are accepted, as in SQLAlchemy's several values"
PORT_0 = "SQLAlchemy takes it for no port; a typing error"
IN_BRACKETS = "a typing error, which SQLAlchemy makes something of"
ENCODED_HOST = "SQLAlchemy does not decode hosts, and cannot use them then"
LAST_AT = "the last @ ends the password, as for 0.2.5's SQLAlchemy"
RAW = "SQLAlchemy takes special characters in passwords, libpq does not"
PERCENT = "other percent signs stay, as for SQLAlchemy"
NUL = "SQLAlchemy has it cut off what follows"
AMBIGUOUS = "0.2.5's SQLAlchemy reads it otherwise, and one of them would send half a password"
BLANK = "SQLAlchemy leaves out what is blank in a query"
DROPPED = "SQLAlchemy drops it without a word"
TWICE = "SQLAlchemy makes a tuple of it, which no driver understands; libpq takes the last"
EQUALS = "SQLAlchemy takes more = in a value"
PLUS = "SQLAlchemy takes + for a space"
IN_DATABASE = "the server would repeat what may be an option, and a password"
JDBC = "libpq takes this word of JDBC's"
WHITE = "files end lines, and white space around a URL is never meant"
A_B = "white space around commas is never meant"
STRINGS = "only URLs are URLs"
NO_NAME = "no host has such a name, but a piece of a password may look so"
SHORT = "SQLAlchemy takes what is left of it"
NO_KEY = "keys that need a passphrase are not read"
NO_CRL = "revocation lists are not read"
NO_OAUTH = "OAuth is not spoken"
NO_SERVICE = "a blank variable says nothing"
PORTS = "libpq reads two blank ports out of the URL, SQLAlchemy none, so PGPORT says it"
NO_PEER = "the owner of a socket is not looked at"
NO_CERT = "a certificate is sent if there is one"
SNI = "the server's name is always sent"
PROTOCOL = "protocol 3.0 is spoken"
TLS_VERSION = "the TLS library's versions are not changed"
NO_REPLICATION = "a session for replication cannot have locks"


class Row(NamedTuple):
    """An input to be understood."""

    url: str
    #: Why we differ from libpq; "" if we do not.
    libpq: str = ""
    sqlalchemy: str = ""
    environment: Mapping[str, str] = MappingProxyType({})
    #: Files in the home folder.
    files: Mapping[str, str] = MappingProxyType({})
    mode: int = 0o600
    #: connect_args
    arguments: Mapping[str, str] = MappingProxyType({})

    def name(self) -> str:
        """A unique name."""
        parts = [self.url] if self.mode == 0o600 else [self.url, oct(self.mode)]
        for more in (self.environment, self.files, self.arguments):
            parts += [f"{name}={value!r}" for name, value in more.items()]
        return " ".join(parts)


URLS: list[Row] = [
    Row("postgresql://"),
    Row("postgresql:///"),
    Row("postgresql:///d"),
    Row("postgresql://localhost"),
    Row("postgresql://localhost/"),
    Row("postgresql://localhost/d"),
    Row("postgres://localhost/d"),
    Row("postgresql+psycopg2://u:p@localhost/d"),
    Row("postgresql+psycopg://u:p@localhost:5433/d"),
    Row("postgresql+pg8000://u:p@localhost/d"),
    Row("postgresql+asyncpg://u:p@localhost/d?ssl=require", ASYNCPG),
    Row("postgresql+asyncpg://u:p@localhost/d?ssl=prefer", ASYNCPG),
    Row(
        "postgresql+asyncpg://u:p@localhost/d?prepared_statement_cache_size=0",
        ASYNCPG,
        sqlalchemy=ASYNCPG,
    ),
    Row("postgresql://u@localhost/d"),
    Row("postgresql://u:@localhost/d"),
    Row("postgresql://u:@localhost/d", environment={"PGPASSWORD": "pw"}),
    Row("postgresql://u@localhost/d", environment={"PGPASSWORD": "pw"}),
    Row("postgresql://u:own@localhost/d", environment={"PGPASSWORD": "pw"}),
    Row("postgresql://:p@localhost/d"),
    Row("postgresql://@localhost/d"),
    Row("postgresql://@/d"),
    Row("postgresql://u@/d"),
    Row("postgresql://u:p@/d"),
    Row("postgresql://u:p@localhost:5433"),
    Row("postgresql://u:p@localhost:/d", sqlalchemy=NO_LIST),
    Row("postgresql://u:p@:5433/d"),
    Row("postgresql://u:p@localhost:0/d", sqlalchemy=PORT_0),
    Row("postgresql://u:p@localhost:65536/d"),
    Row("postgresql://u:p@localhost:-1/d"),
    Row("postgresql://u:p@localhost:port/d"),
    Row("postgresql://u:p@localhost:54 32/d"),
    Row("postgresql://u:p@127.0.0.1/d"),
    Row("postgresql://u:p@[::1]/d"),
    Row("postgresql://u:p@[::1]:5611/d"),
    Row("postgresql://[::1]:5611/d"),
    Row("postgresql://u:p@[::1/d"),
    Row("postgresql://u:p@[]/d", sqlalchemy=IN_BRACKETS),
    Row("postgresql://u:p@[::1]x/d", sqlalchemy=IN_BRACKETS),
    Row("postgresql://u:p@::1/d"),
    Row("postgresql://u:p@[fe80::1%25eth0]/d", sqlalchemy=ENCODED_HOST),
    Row("postgresql://u@127.0.0.1,127.0.0.2/d"),
    Row("postgresql://u@127.0.0.1:1,127.0.0.2:2/d", sqlalchemy=NO_LIST),
    Row("postgresql://u@127.0.0.1:1,127.0.0.2/d", sqlalchemy=NO_LIST),
    Row("postgresql://u@127.0.0.1,127.0.0.2:2/d", sqlalchemy=NO_LIST),
    Row("postgresql://u@127.0.0.1, 127.0.0.2/d", A_B, sqlalchemy=A_B),
    Row("postgresql://u@127.0.0.1,/d"),
    Row("postgresql://u@,/d"),
    Row("postgresql://u@[::1]:1,127.0.0.1:2/d", sqlalchemy=NO_LIST),
    Row("postgresql://u@/d?host=127.0.0.1,127.0.0.2"),
    Row("postgresql://u@/d?host=127.0.0.1,127.0.0.2&port=1,2"),
    Row("postgresql://u@/d?host=127.0.0.1,127.0.0.2&port=1", sqlalchemy=NO_LIST),
    Row("postgresql://u@/d?host=127.0.0.1,127.0.0.2&port=1,2,3"),
    Row("postgresql://u@/d?host=127.0.0.1&port=1,2"),
    Row("postgresql://u@/d?host=127.0.0.1:1&host=127.0.0.2:2", NO_LIST_LIBPQ),
    Row("postgresql://u@/d?host=127.0.0.1&host=127.0.0.2", NO_LIST_LIBPQ),
    Row("postgresql://u@/d?host=127.0.0.1:1", NO_LIST_LIBPQ),
    Row("postgresql://u@/d?host=127.0.0.1:1,127.0.0.2:2", LIST, sqlalchemy=LIST),
    Row("postgresql://u@/d?host=[::1]:5611", LIST, sqlalchemy=LIST),
    Row("postgresql://u@/d?host=::1"),
    Row("postgresql://u@/d?host=::1&port=5611"),
    Row("postgresql://u@localhost:1/d?host=127.0.0.3"),
    Row("postgresql://u@localhost:1/d?port=2"),
    Row("postgresql://u@localhost/d?user=v&password=w&dbname=e"),
    Row("postgresql://u:p@localhost/d?password=w"),
    Row("postgresql://u@/d?host=/run/postgresql"),
    Row("postgresql://u@/d?host=/run/postgresql/"),
    Row("postgresql://u@/d?host=/run/postgresql&port=5433"),
    Row("postgresql://u@%2Frun%2Fpostgresql/d", sqlalchemy=ENCODED_HOST),
    Row("postgresql://u@%2Frun%2Fpostgresql:5433/d", sqlalchemy=ENCODED_HOST),
    Row("postgresql://u@/d?host=@abstract"),
    Row("postgresql://u@/d?host=/a,127.0.0.2&port=1,2"),
    Row("postgresql://u%40x:p%3A%40%2F%3F@localhost/my%20db"),
    Row("postgresql://u@x:p@localhost/d", RAW),
    Row("postgresql://u:p%@localhost/d", PERCENT),
    Row("postgresql://u:p%zz@localhost/d", PERCENT),
    Row("postgresql://u:p%00@localhost/d", sqlalchemy=NUL),
    Row("postgresql://u:p+q@localhost/d"),
    Row("postgresql://u:p#q@localhost/d"),
    Row("postgresql://u:p&q=r@localhost/d"),
    Row("postgresql://u:p:q@localhost/d"),
    Row("postgresql://u:p q@localhost/d", RAW),
    Row("postgresql://u:p@q@localhost/d", LAST_AT, sqlalchemy=LAST_AT),
    Row("postgresql://u:p/q@localhost/d", RAW),
    Row("postgresql://u:p?q@localhost/d"),
    Row("postgresql://u:p@q/r@localhost/d", AMBIGUOUS, sqlalchemy=AMBIGUOUS),
    Row("postgresql://u:p@q?r@localhost/d", sqlalchemy=AMBIGUOUS),
    Row("postgresql://u:p[q@localhost/d"),
    Row("postgresql://u:[p]@localhost/d"),
    Row("postgresql://u:p@localhost/d/e"),
    Row("postgresql://u:p@localhost/d%2Fe"),
    Row("postgresql://u:p@localhost/d+e"),
    Row("postgresql://u:p@localhost/d%3De"),
    Row("postgresql://u:p@localhost/d=e", IN_DATABASE, IN_DATABASE),
    Row("postgresql://u@localhost/d&password=p", IN_DATABASE, IN_DATABASE),
    Row("postgresql://u:p@localhost?connect_timeout=3"),
    Row("postgresql://u:p@localhost/?connect_timeout=3"),
    Row("postgresql://u:p@localhost:5433?connect_timeout=3"),
    Row("postgresql://u:p@localhost/d?"),
    Row("postgresql://u:p@localhost/d?&", BLANK),
    Row("postgresql://u:p@localhost/d?connect_timeout", sqlalchemy=DROPPED),
    Row("postgresql://u:p@localhost/d?connect_timeout=", BLANK),
    Row("postgresql://u:p@localhost/d?connect_timeout=3=4"),
    Row("postgresql://u:p@localhost/d?=3"),
    Row("postgresql://u:p@localhost/d?nonsense=3"),
    Row("postgresql://u:p@localhost/d?CONNECT_TIMEOUT=3"),
    Row("postgresql://u:p@localhost/d?connect%5Ftimeout=3"),
    Row("postgresql://u:p@localhost/d?connect_timeout=3&connect_timeout=4", sqlalchemy=TWICE),
    Row("postgresql://u:p@localhost/d?connect_timeout=3;sslmode=require"),
    Row("postgresql://u:p@localhost/d?connect_timeout=%203"),
    Row("postgresql://u:p@localhost/d?options=-csearch_path%3Dlocks"),
    Row("postgresql://u:p@localhost/d?options=-csearch_path=locks", EQUALS),
    Row("postgresql://u:p@localhost/d?options=-c%20search_path%3Da,b"),
    Row("postgresql://u:p@localhost/d?options=-c+search_path%3Dlocks", PLUS),
    Row("postgresql://u:p@localhost/d?options=-c search_path=locks", EQUALS),
    Row("postgresql://u:p@localhost/d?application_name=a+b", PLUS),
    Row("postgresql://u:p@localhost/d?application_name=a%2Bb"),
    Row("postgresql://u:p@localhost/d?application_name=me@work"),
    Row("postgresql://u@localhost/d?application_name=me@work"),
    Row("postgresql://u:p@localhost/d?ssl=true", sqlalchemy=JDBC),
    Row("postgresql://u:p@localhost/d?ssl=false"),
    Row("postgresql://u:p@localhost/d?requiressl=1"),
    Row("postgresql://u:p@localhost/d#fragment"),
    Row(" postgresql://u:p@localhost/d", WHITE, WHITE),
    Row("postgresql://u:p@localhost/d\n", WHITE, sqlalchemy=WHITE),
    Row('"postgresql://u:p@localhost/d"'),
    Row("'postgresql://u:p@localhost/d'"),
    Row("<postgresql://u:p@localhost/d>"),
    Row("POSTGRESQL://u:p@localhost/d"),
    Row("postgresql:/u:p@localhost/d"),
    Row("postgresql:u:p@localhost/d"),
    Row("u:p@localhost/d"),
    Row("localhost"),
    Row("host=localhost user=u", STRINGS),
    Row("jdbc:postgresql://localhost/d"),
    Row("mysql://u:p@localhost/d"),
    Row("postgresql+://u:p@localhost/d", IN_BRACKETS, sqlalchemy=IN_BRACKETS),
    Row("postgresqlx://u:p@localhost/d"),
    # As providers write them.
    Row("postgres://abcdefghijklmn:0123456789abcdef@ec2-1-2-3-4.invalid:5432/d1a2b3"),
    Row(
        "postgresql://alex:AbC123dEf@ep-cool-1234.us-east-2.aws.invalid/dbname"
        "?sslmode=require&channel_binding=require"
    ),
    Row("postgresql://alex:AbC@ep-cool-1234.invalid/d?options=endpoint%3Dep-cool-1234"),
    Row(
        "postgresql://postgres:pw@mydb.1234.us-east-1.rds.invalid:5432/d?sslmode=verify-full"
        "&sslrootcert=/certs/global-bundle.pem"
    ),
    Row("postgresql://postgres.abcdefghijkl:[YOUR-PASSWORD]@aws-0.pooler.invalid:6543/postgres"),
    Row("postgresql://postgres:pw@db.abcdefghijkl.invalid:5432/postgres?pgbouncer=true"),
    Row("postgres://avnadmin:pw@pg-1234.aivencloud.invalid:12345/defaultdb?sslmode=require"),
    Row("postgresql://user%40server:pw@server.postgres.database.azure.invalid:5432/d"),
    Row("postgresql://u:p@/d?host=/cloudsql/project:region:instance"),
    Row("postgresql+psycopg2://u:p@/d?host=/cloudsql/project:region:instance"),
    Row("postgresql://u:p@localhost/d?schema=public"),
    Row("postgresql://u:p@localhost/d?currentSchema=public"),
    Row("postgresql://u:p@localhost/d?charset=utf8"),
    Row("postgresql://u:p@localhost/d?client_encoding=utf8"),
]
