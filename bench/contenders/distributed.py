"""distributed-pg-lock."""

import logging

from distributed_pg_lock import DistributedLockManager, db
from driver import Contender, main

logging.disable(logging.CRITICAL)


class Distributed(Contender):
    def connect(self, url):
        db.initialize(url.replace("postgresql://", "postgresql+psycopg2://"))
        try:
            db.create_tables()
        except Exception:
            pass  # another process was creating them
        self.manager = DistributedLockManager()

    def lock(self, name):
        lock = self.manager.get_lock(name)
        return lock.acquire, lock.release


main(Distributed())
