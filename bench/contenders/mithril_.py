"""mithril-locks with its PostgreSQL backend."""

import logging

import sqlalchemy
import structlog
from driver import Contender, main
from mithril import Lock
from mithril.backends import PostgresBackend
from mithril.exceptions import LockTimeoutError

logging.disable(logging.CRITICAL)
structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))


class Mithril(Contender):
    def connect(self, url):
        url = url.replace("postgresql://", "postgresql+psycopg2://")
        self.backend = PostgresBackend(sqlalchemy.create_engine(url, pool_size=10))

    def lock(self, name):
        held = []

        def acquire():
            lock = Lock(name, backend=self.backend, ttl=60, timeout=0)
            try:
                lock.acquire()
            except LockTimeoutError:
                return False
            held.append(lock)
            return True

        return acquire, lambda: held.pop().release()


main(Mithril())
