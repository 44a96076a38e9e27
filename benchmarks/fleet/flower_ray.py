"""An app of ``potluck flower-app`` under Flower's own commands: on a SuperLink started by hand, and simulated on Ray.

    python benchmarks/fleet/flower_ray.py [--method fedhm] [--rounds 2] [--skip ray] [--out DIR]

Needs an environment with ``potluck[flower]``, ``flwr[simulation]``, scikit-learn. Plays the digits in one process, on
a SuperLink with four SuperNodes that were started with Flower's commands alone, and on Flower's simulation runtime;
prints each command and whether the states are equal. Everything listens on loopback, and is ended.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import shlex
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path

from potluck.engines.flower.superlink import environment as isolated
from potluck.engines.flower.superlink import free_port, running
from potluck.experiment import run, store
from potluck.experiment.config import Experiment
from potluck.experiment.run_reader import Run

DEVICES, WITHIN_S, START_S = 4, 420, 60


def experiment(method: str, rounds: int) -> Experiment:
    """Four devices of two tiers on the digits."""
    return Experiment.of(
        {
            "name": "app",
            "rounds": rounds,
            "data": {"source": "digits", "public": 0.1},
            "model": {"name": "mlp"},
            "method": {"name": method},
            "fleet": {
                "tier": [{"name": "phone", "devices": 2}, {"name": "laptop", "devices": 2, "gflops": 50.0}],
                "deadline_s": 300.0,
            },
            "engine": {"kind": "inprocess", "join_timeout_s": 120.0},
        }
    )


def call(folder: Path, home: Path, *words: str) -> None:
    """One of Flower's or our commands, in the folder; ends the program where it fails."""
    print(f"$ {shlex.join(words)}", flush=True)
    command = [str(Path(sys.executable).with_name(words[0])), *words[1:]]
    done = subprocess.run(
        command, cwd=folder, env=isolated(home), capture_output=True, text=True, timeout=WITHIN_S, check=False
    )
    if done.returncode:
        sys.exit(f"{(done.stdout + done.stderr)[-3000:]}")


@contextlib.contextmanager
def superlink(folder: Path, name: str, *words: str) -> Iterator[int]:
    """A SuperLink under a connection of this name; its port."""
    port, home = free_port(), folder / "home"
    where = ["--insecure", "--host", "127.0.0.1", "--port", str(port), *words]
    print(f"$ flower-superlink {shlex.join(where)} &", flush=True)
    with running("flower-superlink", where, home, folder / f"{name}.log"):
        until = time.monotonic() + START_S
        while True:
            with contextlib.suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5):
                break
            if time.monotonic() > until:
                sys.exit(f"no SuperLink: {(folder / f'{name}.log').read_text()[-2000:]}")
            time.sleep(0.3)
        connection = f'[superlink.{name}]\naddress = "127.0.0.1:{port}"\ninsecure = true\n'
        (home / "config.toml").write_text(f'[superlink]\ndefault = "{name}"\n\n{connection}')
        yield port


def by_hand(folder: Path) -> None:
    """The run on a SuperLink and SuperNodes that were started with Flower's commands."""
    call(folder, folder / "home", "potluck", "flower-app", "app-real", "app.toml", "--out", "real")
    call(folder, folder / "home", "potluck", "split", "app.toml", "--out", "shares")
    with (
        superlink(folder, "real", "--disable-runtime-dependency-installation") as port,
        contextlib.ExitStack() as nodes,
    ):
        for device in range(DEVICES):
            (folder / f"node-{device}.toml").write_text(node(folder, device))
            words = ["--insecure", "--superlink", f"127.0.0.1:{port}", "--port", str(free_port())]
            words += ["--node-config", f"node-{device}.toml"]
            print(f"$ flower-supernode {shlex.join(words)} &", flush=True)
            words[-1] = str(folder / words[-1])
            nodes.enter_context(running("flower-supernode", words, folder / "home", folder / f"node-{device}.log"))
        call(folder, folder / "home", "flwr", "run", "app-real", "real", "--stream")


def node(folder: Path, device: int) -> str:
    """What a SuperNode is told of its device."""
    files = {"data": f"device-{device:03d}.npz", "public": "public.npz", "test": "test.npz"}
    lines = [f"partition-id = {device}", f'store = "{folder}/store-{device}"']
    return "\n".join([*lines, *(f'{name} = "{folder}/shares/{file}"' for name, file in files.items())]) + "\n"


def on_ray(folder: Path) -> None:
    """The run on Flower's simulation runtime, whose defaults are two devices and two CPUs for each."""
    call(folder, folder / "home", "potluck", "flower-app", "app-ray", "app.toml", "--out", "simulated")
    told = ["--federation-config", f"num-supernodes={DEVICES} client-resources-num-cpus=1"]
    with superlink(folder, "ray", "--simulation"):
        call(folder, folder / "home", "flwr", "run", "app-ray", "ray", *told, "--stream")


def main() -> None:
    """Plays all of them and compares."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--method", default="fedhm")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--skip", choices=["real", "ray"], action="append", default=[])
    parser.add_argument("--out", type=Path, default=None)
    told = parser.parse_args()
    folder = (told.out or Path(tempfile.mkdtemp(prefix="flower-ray-"))).resolve()
    (folder / "home").mkdir(parents=True, exist_ok=True)
    made = experiment(told.method, told.rounds)
    (folder / "app.toml").write_text(store.to_toml(made))
    found = {"in one process": run.run(made, folder / "here").summary}
    ways: Sequence[tuple[str, str, object]] = [("real", "real", by_hand), ("ray", "simulated", on_ray)]
    for name, place, play in ways:
        if name in told.skip:
            continue
        start = time.monotonic()
        play(folder)  # type: ignore[operator]
        found[name] = Run.load(folder / place).summary
        print(f"{name}: {time.monotonic() - start:.0f} s\n", flush=True)
    states = {name: summary["state_sha256"] for name, summary in found.items()}
    print(json.dumps({"states": states, "equal": len(set(states.values())) == 1}, indent=1))
    sys.exit(len(set(states.values())) != 1)


if __name__ == "__main__":
    main()
