"""The lock of redis-py."""

import redis
from driver import Contender, main


class Redis(Contender):
    def connect(self, url):
        self.redis = redis.Redis.from_url(url)

    def lock(self, name):
        lock = self.redis.lock(name, timeout=60, blocking=False, thread_local=False)
        return lock.acquire, lock.release


main(Redis())
