"""The garbage collector runs in one thread while others make objects."""

from __future__ import annotations

from .conftest import python

CODE = """
import gc, sys, threading
from score.distlock import ConfiguredDistlockModule
gc.set_threshold(1)
def make():
    for number in range(2000):
        conf = ConfiguredDistlockModule('postgresql://nobody@localhost/none', number + 1)
        kept = [], conf.get('name'), conf.get('name').hold(on_lost=print), conf.aio.get('name')
threads = [threading.Thread(target=make) for _ in range(8)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print('made')
"""


def test_the_collector_meets_no_object_that_is_half_made() -> None:
    """The constructor of a configuration runs Python code, so threads take turns in it."""
    for _ in range(3):  # it happened in four of five
        assert python(CODE) == "made\n"
