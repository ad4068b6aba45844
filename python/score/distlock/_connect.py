"""Connecting without a confdict: from a URL, or from Django's settings."""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from score.init import ConfigurationError

from ._distlock import _open
from ._errors import DatabaseError, DatabaseUnavailable
from ._refuse import bare, refuse, shown

if TYPE_CHECKING:
    from . import ConfiguredDistlockModule

#: The constructor's options besides the URL.
_OPTIONS = (
    *("maxtime", "timeout", "autoextend", "reentrant", "pool_size", "max_overflow"),
    *("pool_timeout", "pool_recycle", "pool_pre_ping", "echo", "isolation_level"),
    *("connect_args", "table_owner"),
)

#: libpq's variables that name the database and the user if there is no URL.
_PLACE = ("PGSERVICE", "PGHOST", "PGHOSTADDR", "PGPORT", "PGDATABASE", "PGUSER")

#: SQLSTATE classes of a server that refused the login: invalid_authorization, invalid_catalog_name.
_NOT_THERE = ("28", "3D")


def connect(
    url: Any = None,
    *,
    maxtime: float | str | timedelta = "1m",
    connect_args: Mapping[str, object] | None = None,
    **options: Any,
) -> ConfiguredDistlockModule:
    """Connects to a database, without a configuration file; creates the table if needed.

    .. code-block:: python

        conf = score.distlock.connect('postgresql://user@host/database', timeout='10s')

    :param url: whatever :class:`ConfiguredDistlockModule` accepts: the URL of a PostgreSQL
        database, or a SQLAlchemy Engine. Without one, libpq's environment variables name the
        database: ``PGHOST``, ``PGDATABASE``, ``PGSERVICE`` and so on.
    :param maxtime: how long a hold lasts unless it is extended.
    :param connect_args: options by libpq's names, which override those of the URL.
    :param options: the other options of :class:`ConfiguredDistlockModule`.
    :raises score.init.ConfigurationError: if one of these values cannot be used.
    :raises DatabaseUnavailable: if the database cannot be reached within ``pool_timeout``.
    :raises DatabaseError: if the table cannot be created or upgraded.
    """
    _known(options, "connect")
    pass_one = "pass one: connect('postgresql://user@host/database')"
    try:
        return opened(url, pass_one, maxtime=maxtime, connect_args=connect_args, **options)
    except ConfigurationError as error:
        if bare(error).startswith("sqlalchemy.url is empty"):
            # Only configurations call it by that name.
            refuse(f"{bare(error).replace('sqlalchemy.url', 'url', 1)}; {pass_one}")
        raise
    except TypeError as error:
        if str(error).startswith("engine must be "):
            raise TypeError(
                "url must be a SQLAlchemy Engine or a URL as str, such as "
                f"'postgresql://user@host/database', not {type(url).__name__}"
            ) from None
        raise


def _known(options: Mapping[str, object], function: str) -> None:
    for name in options:
        if name not in _OPTIONS:
            close = difflib.get_close_matches(name, _OPTIONS, 1)
            hint = f"did you mean {close[0]!r}? " if close else ""
            refuse(
                f"{shown(name)} is not an option of {function}(): "
                f"{hint}allowed are {', '.join(_OPTIONS)}"
            )


def opened(url: Any, pass_one: str, **options: Any) -> ConfiguredDistlockModule:
    """The configuration for a URL, or for libpq's environment if there is none.

    :param pass_one: the advice to give if the environment leads to no database.
    """
    try:
        return _open({"engine": "postgresql://" if url is None else url, **options})
    except DatabaseError as error:
        state = error.sqlstate or ""
        if url is None and (isinstance(error, DatabaseUnavailable) or state[:2] in _NOT_THERE):
            error.args = (f"{error.message} ({_unsaid()}; {pass_one})", error.sqlstate)
        raise


def _unsaid() -> str:
    """Says what was used instead of a URL; omits the values, which may be secrets."""
    used = [name for name in _PLACE if os.environ.get(name)]
    if not used:
        return f"no URL was given, and none of {', '.join(_PLACE)} is set"
    return f"no URL was given, so the environment says where it is: {', '.join(used)}"


def from_django(alias: str = "default", **options: Any) -> ConfiguredDistlockModule:
    """Connects to one of Django's databases, as ``settings.DATABASES`` describes it.

    .. code-block:: python

        conf = score.distlock.from_django(timeout='10s')

    The locks use their own connections, which Django does not know, so they take part in no
    request's transaction. Inside a test they use the test database.

    :param alias: the alias of the database.
    :param options: as for :func:`connect`, except ``connect_args``: use ``OPTIONS`` in the
        settings for that.
    :raises score.init.ConfigurationError: if there is no such database, if it is not PostgreSQL,
        or if something in its settings cannot be used.
    """
    if "connect_args" in options:
        refuse("connect_args: put it into OPTIONS of the database in Django's settings")
    if not isinstance(alias, str):
        raise TypeError(f"alias must be a str, not {type(alias).__name__}")
    where = f"settings.DATABASES[{shown(alias)}]"
    arguments = _parameters(alias, where)
    _known(options, "from_django")
    try:
        # connect() need not explain what Django's settings leave out.
        return opened("postgresql://", "", **{"maxtime": "1m", **options}, connect_args=arguments)
    except ConfigurationError as error:
        # Name Django's settings as the source; messages about options already name the option.
        for label in ("connect_args", "sqlalchemy.connect_args", "sqlalchemy.url"):
            message = bare(error)
            if message.startswith(f"{label}: "):
                error.args = (f"[score.distlock] {where}{message.removeprefix(label)}",)
        raise


def _has_service(connection: Any) -> bool:
    return bool((connection.settings_dict.get("OPTIONS") or {}).get("service"))


def _parameters(alias: str, where: str) -> dict[str, object]:
    """The parameters Django itself would connect with."""
    try:
        from django.core.exceptions import ImproperlyConfigured
        from django.db import connections
        from django.utils.connection import ConnectionDoesNotExist
    except ImportError as error:
        raise ImportError("from_django() needs Django, which cannot be imported") from error
    try:
        connection = connections[alias]
    except ConnectionDoesNotExist:
        refuse(
            f"{where} is missing; allowed are {', '.join(map(repr, connections))}: name one of "
            "them, from_django('alias'), or add this one to DATABASES in Django's settings"
        )
    except ImproperlyConfigured as error:
        refuse(f"Django's settings cannot be used: {error}")
    if connection.vendor != "postgresql":
        engine = connection.settings_dict.get("ENGINE")
        refuse(
            f"{where}: its ENGINE is {shown(engine)}; allowed are those for PostgreSQL, such as "
            "django.db.backends.postgresql, as the locks are rows of a table there: set ENGINE to "
            "one, or name another database: from_django('alias')"
        )
    if connection.settings_dict.get("NAME") == "" and not _has_service(connection):
        # Django's own message does not say which database.
        refuse(
            f"{where}: its NAME is empty; set NAME to the name of the database, or "
            "OPTIONS['service'] to a service of pg_service.conf that says it"
        )
    try:
        parameters = dict(connection.get_connection_params())
    except ImproperlyConfigured as error:
        refuse(f"{where}: {error}")
    # Django has each connection act as this role.
    role = connection.settings_dict.get("OPTIONS", {}).get("assume_role")
    parameters.pop("assume_role", None)
    if role:
        escaped = "".join("\\" + c if c in "\\ \t\n" else c for c in str(role))
        parameters["options"] = f"{parameters.get('options') or ''} -crole={escaped}".strip()
    return parameters
