"""Flower on Ray: one CPU a client. The apps stand in flower_apps.py."""

from __future__ import annotations

import os

import work
from flower_apps import client, server
from flwr.simulation import run_simulation

if __name__ == "__main__":
    os.environ["FLWR_TELEMETRY_ENABLED"] = "0"
    cores = len(os.sched_getaffinity(0))
    config = {
        "client_resources": {"num_cpus": 1.0},
        "init_args": {"num_cpus": cores, "include_dashboard": False, "log_to_driver": False},
    }
    run_simulation(server, client, num_supernodes=len(work.load().shares), backend_config=config)
