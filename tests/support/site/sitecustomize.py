"""Imported by the interpreter of a service that a test has started as patient, before anything else."""

import sys

if sys.orig_argv[1:3] == ["-m", "service"]:
    from tests.support.patience import give_redis_time

    give_redis_time()
