"""Reads the configuration: checks every value here, and names the key in every complaint."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any

from score.init import ConfigurationError, parse_bool, parse_time_interval

from ._refuse import bare, encodable, refuse, shown
from ._url import text_of

#: A century; the core has the same limit.
MAX_SECONDS = 100 * 366 * 86400.0

#: How many characters of an argument of the wrong type a message shows.
_SHORT = 40


#: A number and its unit; an interval is a sum of them. A number can be read in only one way, so
#: that the time this takes is linear in the length of the text.
_PART = re.compile(r"(\d+(?:\.\d*)?|\.\d+)\s*([a-z]{1,20})\s*", re.IGNORECASE)


def _parsed(text: str) -> float:
    """A score interval; unlike score.init's own it may have fractions and be a sum."""
    text = text.strip()
    if not text:
        raise ValueError
    seconds, start = 0.0, 0
    while start < len(text):
        part = _PART.match(text, start)
        if part is None:
            raise ValueError
        seconds += float(part[1]) * float(parse_time_interval("1" + part[2]))
        start = part.end()
    return seconds


def interval(value: object, key: str, endless: str = "") -> float:
    """A time interval in seconds, from a score interval (``'500ms'``), a number or a timedelta.

    `endless` says in messages what the caller accepts for a time without an end.
    """
    allowed = (
        "allowed are a score interval such as '1m', '500ms' or '2 hours' (units: ms, s, m, h, d, "
        f"w), or seconds{endless}"
    )
    if isinstance(value, timedelta):
        seconds = value.total_seconds()
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        try:
            seconds = float(value)
        except OverflowError:
            seconds = math.inf
    elif isinstance(value, str):
        try:
            seconds = float(value)
        except ValueError:
            try:
                seconds = _parsed(value)
            except ValueError:
                refuse(f"{key}: {shown(value)} is not a time interval; {allowed}")
    else:
        raise TypeError(
            f"{key} must be a number of seconds, a str or a timedelta, not {type(value).__name__}"
        )
    if not 0 <= seconds <= MAX_SECONDS:  # nor is NaN between them
        refuse(f"{key}: {shown(value)} is not between 0 and a hundred years; {allowed}")
    return seconds


def _seconds(value: object, key: str, endless: str = "") -> float:
    try:
        return interval(value, key, endless)
    except TypeError as error:
        refuse(str(error))


def timeout(value: object, key: str = "timeout") -> float | None:
    """A time passed as an argument, in seconds; ``None`` stays ``None``."""
    if value is None:
        return None
    try:
        return interval(value, key, "; None waits without limit" if key == "timeout" else "")
    except ConfigurationError as error:
        # This is an argument, not a configuration.
        raise ValueError(bare(error)) from None


def flag(value: object, key: str) -> bool:
    """An argument that is a bool, and nothing else that is true or false."""
    if isinstance(value, bool):
        return value
    kind, text = type(value).__name__, shown(value)
    # A longer value may be a token.
    raise TypeError(
        f"{key} must be True or False, not "
        + (f"{text} ({kind})" if len(text) <= _SHORT else f"a {kind}")
    )


def choice(value: object, key: str) -> bool | None:
    """The same, or ``None``, which means as configured."""
    if value is None:
        return None
    try:
        return flag(value, key)
    except TypeError as error:
        raise TypeError(f"{error}; None is as configured") from None


def _wait(value: object, key: str) -> float | None:
    if value is None or (isinstance(value, str) and value.strip().lower() == "none"):
        return None
    return _seconds(value, key, "; none waits without limit")


def _timeout(value: object, key: str) -> float:
    seconds = _seconds(value, key)
    if seconds == 0:
        refuse(f"{key}: {shown(value)} leaves no time to connect; it must be more than 0 seconds")
    return seconds


def _recycle(value: object, key: str) -> float | None:
    if value in (None, -1):
        return None
    if isinstance(value, str) and value.strip() in ("-1", "None"):
        return None
    return _seconds(value, key)


def _integer(least: int, meaning: str) -> Callable[[object, str], int]:
    def parse(value: object, key: str) -> int:
        try:
            if isinstance(value, bool) or not isinstance(value, (int, str)):
                raise ValueError
            number = int(value)
        except ValueError:
            refuse(f"{key}: {shown(value)} is not an integer; allowed are {meaning}")
        if not least <= number <= 100_000:
            refuse(f"{key}: {shown(value)} is out of range; allowed are {meaning}")
        return number

    return parse


def _boolean(value: object, key: str) -> bool:
    try:
        return bool(parse_bool(value))
    except Exception:
        refuse(f"{key}: {shown(value)} is not a truth value; allowed are true and false")


def _url(value: object, key: str) -> str:
    text = text_of(value)
    if text is None:
        refuse(
            f"{key} must be a str, SQLAlchemy's URL or a DSN of pydantic, "
            f"not {type(value).__name__}"
        )
    return text


def _arguments(value: object, key: str) -> Mapping[str, object]:
    if not isinstance(value, Mapping):
        refuse(
            f"{key} must be a mapping of libpq's options, not {type(value).__name__}; in a file "
            "append them to sqlalchemy.url: ?name=value&name=value"
        )
    return value


def _text(value: object, key: str) -> str:
    if not isinstance(value, str):
        refuse(f"{key} must be a str, not {type(value).__name__}")
    if "\0" in value:
        refuse(f"{key} contains NUL, which PostgreSQL cannot store")
    return encodable(value, key)


_ISOLATION = (
    "AUTOCOMMIT",
    "READ COMMITTED",
    "READ UNCOMMITTED",
    "REPEATABLE READ",
    "SERIALIZABLE",
)


def _isolation(value: object, key: str) -> str:
    level = _text(value, key).replace("_", " ").upper()
    if level not in _ISOLATION:
        refuse(f"{key}: {shown(value)} is unknown; allowed are {', '.join(_ISOLATION)}")
    return level


#: Key of the configuration → (keyword of the constructor, parser).
_KEYS: dict[str, tuple[str, Callable[[object, str], Any]]] = {
    "sqlalchemy.url": ("engine", _url),
    "sqlalchemy.pool_size": ("pool_size", _integer(0, "0 (no limit) to 100000")),
    "sqlalchemy.max_overflow": ("max_overflow", _integer(-1, "-1 (no limit) to 100000")),
    "sqlalchemy.pool_timeout": ("pool_timeout", _timeout),
    "sqlalchemy.pool_recycle": ("pool_recycle", _recycle),
    "sqlalchemy.pool_pre_ping": ("pool_pre_ping", _boolean),
    "sqlalchemy.echo": ("echo", _boolean),
    "sqlalchemy.isolation_level": ("isolation_level", _isolation),
    "sqlalchemy.connect_args": ("connect_args", _arguments),
    "maxtime": ("maxtime", _seconds),
    "timeout": ("timeout", _wait),
    "autoextend": ("autoextend", _boolean),
    "reentrant": ("reentrant", _boolean),
    "table_owner": ("table_owner", _text),
}


#: Other libraries' names for the database's URL.
_URLS = ("url", "uri", "dsn", "database", "engine")


def _meant(text: str) -> str | None:
    """The key that the user may have meant instead."""
    if close := difflib.get_close_matches(text, list(_KEYS), 1):
        return close[0]
    plain = text.lower().replace("-", "_").replace(".", "_")
    # The constructor's names, or another library's name for the URL.
    last = {key.rpartition(".")[2]: key for key in _KEYS}
    if close := difflib.get_close_matches(plain, list(last), 1, 0.8):
        return last[close[0]]
    return "sqlalchemy.url" if plain.endswith(_URLS) else None


def _refuse_unknown(key: object, confdict: Mapping[Any, Any]) -> None:
    """Refuses a key that is not ours, unless it may belong to every section."""
    text = key[:100] if isinstance(key, str) else ""
    close = difflib.get_close_matches(text, _KEYS, 1)
    if "here" in confdict and "cwd" in confdict:
        # The key comes from a file. score.init has copied these two, and everything
        # in the file's [DEFAULT], into every section: into [distlock], and with a
        # prefix into [distlock:sqlalchemy]. What looks like ours is ours.
        prefix, _, last = text.rpartition(".")
        copied = last in confdict and confdict[last] == confdict[key]
        if copied if prefix else not close:
            return
    meant = _meant(text)
    hint = f"did you mean {meant!r}? " if meant else ""
    refuse(f"{shown(key)} is not a key of score.distlock: {hint}allowed are {', '.join(_KEYS)}")


def read(confdict: object) -> dict[str, Any]:
    """The keyword arguments for ``ConfiguredDistlockModule`` from a score configuration."""
    if not isinstance(confdict, Mapping):
        raise TypeError(f"confdict must be a mapping, not {type(confdict).__name__}")
    found: dict[str, Any] = {"maxtime": 60.0}
    for key, value in confdict.items():
        if key in _KEYS:
            keyword, parse = _KEYS[key]
            found[keyword] = parse(value, key)
        else:
            _refuse_unknown(key, confdict)
    if "engine" not in found:
        # In a file such a key may have come from [DEFAULT].
        instead = [key for key in confdict if isinstance(key, str) and key.lower().endswith(_URLS)]
        hint = f" ({shown(instead[0])} is not a key of score.distlock)" if instead else ""
        refuse(
            "sqlalchemy.url is missing (in a file: in the section [distlock]): set it to the URL "
            "of a PostgreSQL database, such as postgresql://user@host/database, or to embedded: "
            f"for development{hint}"
        )
    return found


def of_file(error: BaseException, confdict: Any) -> None:
    """Makes an error of the configuration name the section of the file it came from."""
    text, prefix = str(error), "[score.distlock] "
    if text.startswith(prefix) and "here" in confdict and "cwd" in confdict:
        error.args = ("[distlock] " + text.removeprefix(prefix),)


#: The pool's options, and their defaults.
_POOL: dict[str, Any] = {
    "pool_size": 5,
    "max_overflow": 10,
    "pool_timeout": 30.0,
    "pool_recycle": None,
    "pool_pre_ping": False,
}


def constructor(given: Mapping[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any], str | None]:
    """Checks the options passed to the constructor itself.

    :returns: the pool's options, the options for `conf.engine`, and the table's owner.
    """
    parsers = dict(_KEYS.values())
    read = {key: parsers[key](value, key) for key, value in given.items() if value is not None}
    owner = read.pop("table_owner", None)
    pool = tuple(read.get(key, default) for key, default in _POOL.items())
    return pool, {key: value for key, value in read.items() if value is not None}, owner
