"""What tests need that never reach a server."""

from __future__ import annotations

from .support.server import free_port

#: Well-formed; nobody is there.
URL = "postgresql://nobody@127.0.0.1:9/nowhere"

__all__ = ("URL", "free_port")
