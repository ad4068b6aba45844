"""PALs: session-level advisory locks, which do not survive a crash of the server."""

import pals
from driver import Contender, main


class Pals(Contender):
    def connect(self, url):
        self.locker = pals.Locker("bench", url.replace("postgresql://", "postgresql+psycopg2://"))

    def lock(self, name):
        lock = self.locker.lock(name, blocking=False)
        return lock.acquire, lock.release


main(Pals())
