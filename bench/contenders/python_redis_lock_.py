"""python-redis-lock."""

import redis
import redis_lock
from driver import Contender, main


class PythonRedisLock(Contender):
    def connect(self, url):
        self.redis = redis.StrictRedis.from_url(url)

    def lock(self, name):
        lock = redis_lock.Lock(self.redis, name, expire=60)
        return (lambda: lock.acquire(blocking=False)), lock.release


main(PythonRedisLock())
