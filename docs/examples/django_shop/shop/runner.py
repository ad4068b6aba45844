"""Django drops the database of its tests only if nobody has a session in it."""

from typing import Any

from django.test.runner import DiscoverRunner

from .locks import locks


class Runner(DiscoverRunner):
    def teardown_databases(self, old_config: Any, **kwargs: Any) -> None:
        if locks.cache_info().currsize:
            locks().close()
        super().teardown_databases(old_config, **kwargs)
