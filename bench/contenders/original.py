"""score.distlock 0.2.5."""

from driver import Contender, main

import score.distlock


class Original(Contender):
    most = 400  # its pool of connections is exhausted after 596 cycles

    def connect(self, url):
        self.conf = score.distlock.init({"sqlalchemy.url": url, "maxtime": "1m"})

    def lock(self, name):
        lock = self.conf.get(name)
        return lock.try_acquiring, lock.release


main(Original())
