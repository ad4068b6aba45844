"""dislock's leases."""

import logging

import psycopg
from dislock.core import LeaseLock, LockContext
from dislock.exceptions import LockNotAcquiredError
from driver import Contender, main

logging.disable(logging.CRITICAL)
TABLE = (
    "CREATE TABLE IF NOT EXISTS key_value "
    "(key text PRIMARY KEY, value text NOT NULL, expire_at timestamptz NOT NULL)"
)


class Dislock(Contender):
    def connect(self, url):
        self.url = url
        try:
            with psycopg.connect(url, autocommit=True) as connection:
                connection.execute(TABLE)
        except psycopg.errors.UniqueViolation:
            pass  # another process was creating it

    def lock(self, name):
        held = []

        def acquire():
            context = LockContext(
                url=self.url,
                table_parts=["key_value"],
                lock_key=name,
                owner="bench",
                run_ttl_seconds=60,
                lease_interval_seconds=20,
            )
            lock = LeaseLock(context)
            try:
                lock.__enter__()
            except LockNotAcquiredError:
                return False
            held.append(lock)
            return True

        return acquire, lambda: held.pop().__exit__(None, None, None)


main(Dislock())
