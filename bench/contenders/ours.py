"""This module."""

from driver import Contender, main

import score.distlock


class Ours(Contender):
    def connect(self, url):
        self.conf = score.distlock.ConfiguredDistlockModule(url, "1m", pool_size=10)

    def lock(self, name):
        lock = self.conf.get(name)
        return lock.try_acquiring, lock.release


main(Ours())
