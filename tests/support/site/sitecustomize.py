"""Imported by the interpreter of a service that a test has started as patient, before anything else."""

import sys

if "service.worker" in sys.orig_argv:
    from tests.support.patience import give_redis_time

    give_redis_time()
