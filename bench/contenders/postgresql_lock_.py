"""postgresql-lock: advisory locks of a session, which no crash of the server survives."""

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
