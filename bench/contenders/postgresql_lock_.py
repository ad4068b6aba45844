"""postgresql-lock: session-level advisory locks, which do not survive a crash of the server."""

import psycopg2
from driver import Contender, main
from postgresql_lock import Lock


class PostgresqlLock(Contender):
    def connect(self, url):
        self.url = url

    def lock(self, name):
        lock = Lock(psycopg2.connect(self.url), name)
        return (lambda: lock.acquire(block=False)), lock.release


main(PostgresqlLock())
