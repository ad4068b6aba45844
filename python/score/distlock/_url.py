"""URLs that are objects."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote, urlencode

from ._refuse import encodable


def text_of(value: object) -> str | None:
    """The text of a URL: a str, a SQLAlchemy URL, a pydantic DSN, or a secret with one."""
    if hasattr(value, "get_secret_value"):
        value = value.get_secret_value()
    if isinstance(value, str):
        return value
    package = type(value).__module__.partition(".")[0]
    if package == "sqlalchemy" and hasattr(value, "drivername"):
        return rendered(value)
    if package in ("pydantic", "pydantic_core") and "://" in str(value):
        return str(value)
    return None


def rendered(url: Any) -> str:
    """A SQLAlchemy URL as text, with everything percent-encoded."""

    def quoted(text: Any, safe: Any = "", *_: Any) -> str:
        return quote(encodable(str(text), "sqlalchemy.url"), safe=safe)

    user = "" if url.username is None else quoted(url.username)
    if url.password is not None:
        user += ":" + quoted(url.password)
    host = url.host or ""
    host = f"[{host}]" if ":" in host else quoted(host, ",")
    port = "" if url.port is None else f":{url.port}"
    database = quoted(url.database or "")
    query = urlencode(dict(url.query or {}), doseq=True, quote_via=quoted, safe="")
    return f"{url.drivername}://{user}{'@' if user else ''}{host}{port}/{database}?{query}"
