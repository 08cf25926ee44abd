"""Processes that start quickly: they are forked from one that has paid for the imports."""

from __future__ import annotations

import multiprocessing

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["tests.stores.storm", "tests.property.store_process"])
