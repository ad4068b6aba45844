"""The locks of this process, which are made when the first of them is needed."""

import functools

import score.distlock
from score.distlock import ConfiguredDistlockModule


@functools.cache
def locks() -> ConfiguredDistlockModule:
    return score.distlock.from_django(maxtime="30s")
