"""The benchmark harness runs; its figures are for people, and for `nox -s benchmarks`."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent


def measured(module: str, folder: Path, *options: str) -> Any:
    """Run a harness to its end; return its figures."""
    command = [sys.executable, "-m", module, "--json", *options, f"--folder={folder}"]
    done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=300)
    return json.loads(done.stdout)


def test_every_load_is_measured_beside_its_baselines(tmp_path: Path) -> None:
    """The harness runs every load to its end and gives each ratio that the docs show."""
    found = measured("benchmarks", tmp_path, "--rounds=1", "--scale=0.01")
    loads = [figure["name"] for figure in found["memory"]]
    assert loads == ["burst of 100", "1 client", "10 clients", "100 clients", "1000 clients"]
    assert [figure["name"] for figure in found["durable"]] == loads[1:]
    burst, *clients = found["memory"]
    assert set(burst["ratios"]) == {"raw nursery", "checkpoint and scope"}
    assert all(set(figure["ratios"]) == {"raw nursery"} for figure in clients)
    for figure in found["durable"]:
        assert set(figure["ratios"]) == {
            "the same writes, a commit each",
            "plain SQLite, a commit each",
            "plain SQLite, grouped",
            "raw nursery",
        }
    assert set(found["start_ms"]) == {"memory", "SQLite"}
    assert list(tmp_path.iterdir()) == []


def test_the_load_over_http_loses_nothing(tmp_path: Path) -> None:
    """The harness loads a server, kills it, and finds every task in its database; subscribers beside it or not."""
    sizes = ("--tasks=20", "--clients=4", "--others=5", "--questions=5", "--rounds=1")
    found = measured("benchmarks.over_http", tmp_path, *sizes)
    (loads,) = found["rounds"]
    assert list(loads) == ["none", "live", "dead"]
    for load in loads.values():
        assert load["tasks"] == 20
        assert load["polls"] >= 3 * 20
        assert 0 < load["p50"] <= load["p99"]
    assert found["timing"]["questions"] == 5
    assert list(tmp_path.iterdir()) == []
