"""Children of a process whose pools have threads; each creates such pools of its own."""

import os
import sys

from score.distlock import ConfiguredDistlockModule


def use_many() -> "list[ConfiguredDistlockModule]":
    confs = [ConfiguredDistlockModule(sys.argv[1], 60) for _ in range(20)]
    for number, conf in enumerate(confs):
        conf.release(str(number), conf.acquire(str(number)))
    return confs


parents = use_many()
for _ in range(int(sys.argv[2])):
    child = os.fork()
    if child == 0:
        for conf in use_many():
            conf.close()
        sys.exit(0)
    assert os.waitpid(child, 0)[1] == 0
print("good")
