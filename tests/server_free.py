"""Helpers for tests that never reach a server."""

from __future__ import annotations

from .support.server import free_port

#: Well-formed, but nothing listens there.
URL = "postgresql://nobody@127.0.0.1:9/nowhere"

__all__ = ("URL", "free_port")
