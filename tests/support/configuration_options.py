"""Possible values of options, in a URL, a variable, a service file and connect_args."""

from __future__ import annotations

from urllib.parse import quote

from .configuration_urls import (
    BLANK,
    NO_CERT,
    NO_CRL,
    NO_KEY,
    NO_NAME,
    NO_OAUTH,
    NO_PEER,
    NO_REPLICATION,
    PROTOCOL,
    SNI,
    TLS_VERSION,
    Row,
)

#: Values of each option, and why we differ from libpq.
VALUES: dict[str, dict[str, str]] = {
    "user": {"v": "", "": "", "v w": "", "v@w": ""},
    "password": {"pw": "", "": "", "p w": "", "p@w/x?y": ""},
    "dbname": {"e": "", "": "", "e f": "", "postgresql://x.invalid/e": ""},
    "host": {
        "127.0.0.1": "",
        "": "",
        "/run": "",
        "127.0.0.1,127.0.0.2": "",
        "::1": "",
        "a b": NO_NAME,
        ",": "",
    },
    "hostaddr": {"127.0.0.1": "", "::1": "", "": "", "127.0.0.1,::1": "", "localhost": "", "x": ""},
    "port": {
        "5433": "",
        "": "",
        "0": "",
        "65536": "",
        "x": "",
        " 5433": "",
        "+5433": "",
        "1,2": "",
        "05433": "",
    },
    "passfile": {"/nowhere": "", "": "", "/dev/null": ""},
    "connect_timeout": {
        "3": "",
        "": "",
        "0": "",
        "-1": "",
        "1.5": "",
        "x": "",
        " 3 ": "",
        "+3": "",
        "99999999999": "",
    },
    "client_encoding": {"utf8": "", "UTF-8": "", "auto": "", "": "", "LATIN1": "", "SQL_ASCII": ""},
    "options": {"-csearch_path=a": "", "-c search_path=a,b -c x.y=z": "", "": ""},
    "application_name": {"me": "", "": "", "a b": ""},
    "fallback_application_name": {"me": "", "": ""},
    "keepalives": {"0": "", "1": "", "": "", "x": "", "2": ""},
    "keepalives_idle": {"30": "", "0": "", "": "", "x": ""},
    "keepalives_interval": {"30": "", "0": "", "": "", "x": ""},
    "keepalives_count": {"3": "", "0": "", "": "", "x": ""},
    "tcp_user_timeout": {"3000": "", "0": "", "": "", "x": ""},
    "sslmode": {
        "disable": "",
        "allow": "",
        "prefer": "",
        "require": "",
        "verify-ca": "",
        "verify-full": "",
        "": "",
        "Require": "",
        "nonsense": "",
    },
    "sslnegotiation": {"postgres": "", "direct": "", "": "", "x": ""},
    "sslcompression": {"0": "", "1": "", "": ""},
    "sslcert": {"/c.crt": "", "": ""},
    "sslkey": {"/c.key": "", "": ""},
    "sslcertmode": {"allow": "", "disable": NO_CERT, "require": NO_CERT, "": "", "x": ""},
    "sslpassword": {"pw": NO_KEY, "": ""},
    "sslrootcert": {"/r.crt": "", "system": "", "": ""},
    "sslcrl": {"/r.crl": NO_CRL, "": ""},
    "sslcrldir": {"/r": NO_CRL, "": ""},
    "sslsni": {"1": "", "0": SNI, "": ""},
    "requirepeer": {"postgres": NO_PEER, "": ""},
    "require_auth": {
        "scram-sha-256": "",
        "!password": "",
        "password, md5": "",
        "none": "",
        "": "",
        "!md5,scram-sha-256": "",
        "x": "",
        "md5,md5": "",
    },
    "channel_binding": {"disable": "", "prefer": "", "require": "", "": "", "x": ""},
    "min_protocol_version": {"3.0": "", "3.2": PROTOCOL, "latest": PROTOCOL, "": "", "x": ""},
    "max_protocol_version": {"3.0": "", "3.2": "", "latest": "", "": "", "x": ""},
    "ssl_min_protocol_version": {"TLSv1.2": "", "TLSv1.3": TLS_VERSION, "": "", "x": ""},
    "ssl_max_protocol_version": {"TLSv1.2": TLS_VERSION, "TLSv1.3": "", "": "", "x": ""},
    "gssencmode": {"disable": "", "prefer": "", "require": "", "": "", "x": ""},
    "krbsrvname": {"postgres": "", "x": ""},
    "gsslib": {"gssapi": ""},
    "gssdelegation": {"0": "", "1": ""},
    "replication": {
        "false": "",
        "off": "",
        "database": NO_REPLICATION,
        "true": NO_REPLICATION,
        "": "",
    },
    "target_session_attrs": {
        "any": "",
        "read-write": "",
        "read-only": "",
        "primary": "",
        "standby": "",
        "prefer-standby": "",
        "": "",
        "x": "",
    },
    "load_balance_hosts": {"disable": "", "random": "", "": "", "x": ""},
    "scram_client_key": {"AAAA": ""},
    "scram_server_key": {"AAAA": ""},
    "oauth_issuer": {"https://x.invalid": NO_OAUTH, "": ""},
    "oauth_client_id": {"x": NO_OAUTH, "": ""},
    "oauth_scope": {"x": NO_OAUTH, "": ""},
    "sslkeylogfile": {"": ""},
    "nonsense": {"x": ""},
}

#: What libpq refuses, or takes for its default, if it is blank.
FILLED = {
    "host",
    *("connect_timeout", "tcp_user_timeout", "keepalives", "keepalives_idle"),
    *("keepalives_interval", "keepalives_count", "sslmode", "sslnegotiation", "sslcertmode"),
    *("channel_binding", "min_protocol_version", "max_protocol_version", "gssencmode"),
    *("target_session_attrs", "load_balance_hosts", "scram_client_key", "scram_server_key"),
}

WHERE = {"host", "hostaddr"}

VARIABLES = {
    "service": "PGSERVICE",
    "user": "PGUSER",
    "password": "PGPASSWORD",
    "passfile": "PGPASSFILE",
    "channel_binding": "PGCHANNELBINDING",
    "connect_timeout": "PGCONNECT_TIMEOUT",
    "dbname": "PGDATABASE",
    "host": "PGHOST",
    "hostaddr": "PGHOSTADDR",
    "port": "PGPORT",
    "client_encoding": "PGCLIENTENCODING",
    "options": "PGOPTIONS",
    "application_name": "PGAPPNAME",
    "sslmode": "PGSSLMODE",
    "sslnegotiation": "PGSSLNEGOTIATION",
    "sslcompression": "PGSSLCOMPRESSION",
    "sslcert": "PGSSLCERT",
    "sslkey": "PGSSLKEY",
    "sslcertmode": "PGSSLCERTMODE",
    "sslrootcert": "PGSSLROOTCERT",
    "sslcrl": "PGSSLCRL",
    "sslcrldir": "PGSSLCRLDIR",
    "sslsni": "PGSSLSNI",
    "requirepeer": "PGREQUIREPEER",
    "require_auth": "PGREQUIREAUTH",
    "min_protocol_version": "PGMINPROTOCOLVERSION",
    "max_protocol_version": "PGMAXPROTOCOLVERSION",
    "ssl_min_protocol_version": "PGSSLMINPROTOCOLVERSION",
    "ssl_max_protocol_version": "PGSSLMAXPROTOCOLVERSION",
    "gssencmode": "PGGSSENCMODE",
    "krbsrvname": "PGKRBSRVNAME",
    "gsslib": "PGGSSLIB",
    "gssdelegation": "PGGSSDELEGATION",
    "target_session_attrs": "PGTARGETSESSIONATTRS",
    "load_balance_hosts": "PGLOADBALANCEHOSTS",
}


def options() -> list[Row]:
    """Each value in a URL, a variable, a service file and connect_args."""
    rows = []
    for name, values in VALUES.items():
        for value, why in values.items():
            blank = BLANK if value == "" and name in FILLED else why
            rows.append(Row(f"postgresql://localhost/?{name}={quote(value)}", blank, why))
            if name in VARIABLES:
                url = "postgresql://" if name in WHERE else "postgresql://localhost"
                rows.append(Row(url, why, why, {VARIABLES[name]: value}))
            line = {".pg_service.conf": f"[s]\n{name}={value}\n"}
            url = (
                "postgresql:///?service=s" if name in WHERE else "postgresql://localhost?service=s"
            )
            rows.append(Row(url, why, why, files=line))
            url = url.partition("?")[0]
            rows.append(Row(url, why, why, arguments={name: value}))
    return rows
