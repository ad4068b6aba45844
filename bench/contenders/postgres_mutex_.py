"""postgres-mutex, with one connection for each lock as its documentation recommends."""

import contextlib
import logging

import psycopg
from driver import Contender, main
from postgres_mutex import Mutex

logging.disable(logging.CRITICAL)


class PostgresMutex(Contender):
    def connect(self, url):
        self.url = url

    def lock(self, name):
        mutex = Mutex(dsn=self.url, lock_name=name)
        with contextlib.suppress(psycopg.Error):  # another process was creating it
            mutex.create_schema()
        held = []

        def acquire():
            hold = mutex.acquire()
            if not hold.__enter__():
                hold.__exit__(None, None, None)
                return False
            held.append(hold)
            return True

        return acquire, lambda: held.pop().__exit__(None, None, None)


main(PostgresMutex())
