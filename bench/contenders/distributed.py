"""distributed-pg-lock."""

import contextlib
import logging

from distributed_pg_lock import DistributedLockManager, db
from driver import Contender, main

logging.disable(logging.CRITICAL)


class Distributed(Contender):
    def connect(self, url):
        db.initialize(url.replace("postgresql://", "postgresql+psycopg2://"))
        with contextlib.suppress(Exception):  # another process was creating them
            db.create_tables()
        self.manager = DistributedLockManager()

    def lock(self, name):
        lock = self.manager.get_lock(name)
        return lock.acquire, lock.release


main(Distributed())
