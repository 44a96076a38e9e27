"""The commands of a real fleet: peer, certificates, serve, join, flower-app."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from potluck.cli.arguments import File, Overrides, Quiet
from potluck.cli.display import err, out
from potluck.cli.watching import told, watched
from potluck.core.errors import ConfigError

AGAIN = "the same command goes on where this one stopped"


def peer(
    experiment: File,
    number: Annotated[int, typer.Option("--id", help="This peer's id in the fleet.")],
    data: Annotated[str, typer.Option(metavar="npz:FILE", help="Its training share, as split writes it.")],
    public: Annotated[str, typer.Option(metavar="npz:FILE", help="The shared seeds; else the experiment's own.")] = "",
    test: Annotated[str, typer.Option(metavar="npz:FILE", help="What its model is evaluated on.")] = "",
    listen: Annotated[str, typer.Option(metavar="tls/HOST:PORT", help="Where others dial.")] = "tls/0.0.0.0:7447",
    connect: Annotated[list[str] | None, typer.Option(metavar="ID=tls/HOST:PORT", help="A peer to dial.")] = None,
    cert: Annotated[Path | None, typer.Option(help="Its certificate.")] = None,
    key: Annotated[Path | None, typer.Option(help="Its key.")] = None,
    ca: Annotated[Path | None, typer.Option(help="The CA's certificate.")] = None,
    insecure: Annotated[bool, typer.Option("--insecure", help="tcp on 127.0.0.1, for tests.")] = False,
    check: Annotated[bool, typer.Option("--check", help="Trains nothing: who is reached, and how fast.")] = False,
    overrides: Overrides = None,
    folder: Annotated[Path | None, typer.Option("--out", metavar="DIR", help="The run folder.")] = None,
    quiet: Quiet = False,
) -> None:
    """Plays one peer's part of an experiment without a server; the same command goes on where it stopped.

    Example: potluck peer peers.toml --id 0 --data npz:shares/device-000.npz --public npz:shares/public.npz
    --connect 1=tls/peer-b.example:7447 --cert keys/peer-0.pem --key keys/peer-0.key --ca keys/ca.pem
    """
    from potluck.deploy.peer import PeerOptions, run_peer
    from potluck.engines.mesh.links import Links, by_id
    from potluck.experiment.config import Experiment

    loaded = Experiment.load(experiment, overrides or ())
    links = Links(
        id=number,
        listen=listen,
        connect=by_id("--connect", connect or ()),
        cert=cert,
        key=key,
        ca=ca,
        insecure=insecure,
        max_frame_mb=loaded.engine.max_frame_mb,
    )
    options = PeerOptions(links=links, data=data, public=public, test=test)
    if check:
        raise SystemExit(show_connectivity(loaded, options))
    out_dir = folder or Path("runs") / f"{loaded.name}-peer-{number}"
    watched(lambda listener: run_peer(loaded, options, out_dir, listener), out_dir, quiet, AGAIN)


def show_connectivity(experiment: Any, options: Any) -> int:
    """Says how each other peer is reached; the exit code, 0 where all are."""
    from potluck.deploy.connectivity import check_peers

    found = check_peers(experiment, options)
    for reach in found:
        told = reach.fault or f"round trip {1000 * reach.round_trip_s:.1f} ms, {reach.bytes_per_s / 1e6:.2f} MB/s"
        out.print(escape(f"peer {reach.peer} ({reach.endpoint}): {told}"), soft_wrap=True)
    return int(any(reach.fault for reach in found))


def certificates(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Where they go, or where the CA is.")],
    devices: Annotated[int | None, typer.Option(help="How many peers, or devices; 0: the CA and the server.")] = None,
    host: Annotated[
        list[str] | None, typer.Option(metavar="ID=NAME", help="A name or address that others dial; or server=NAME.")
    ] = None,
    csr: Annotated[int | None, typer.Option(metavar="ID", help="Make this device's key, and ask for a sign.")] = None,
    requests: Annotated[
        list[Path] | None, typer.Option("--sign", metavar="FILE.csr", help="Sign such a request with the CA in DIR.")
    ] = None,
) -> None:
    """Writes a CA, a server's certificate, and a certificate and key for each device.

    Example: potluck certificates keys --devices 3 --host 0=peer-a.example --host 0=10.0.0.1 --host 1=peer-b.example

    Where no key may travel: potluck certificates keys --devices 0, on each device potluck certificates mine --csr ID
    --host ID=NAME, and where the CA is potluck certificates keys --sign peer-ID.csr
    """
    from potluck.engines.security.certificates import HERE, hosts_of, sign, write_certificates, write_request

    if sum(asked is not None for asked in (devices, csr, requests)) != 1:
        raise ConfigError("expected one of --devices N (all keys at once), --csr ID (on a device), --sign FILE.csr")
    server, hosts = hosts_of(host or ())
    if devices is None and (server or set(hosts) - {csr}):
        raise ConfigError("--host: with --csr ID only names of that device, with --sign none: the request holds them")
    if devices is not None:
        written = write_certificates(folder, devices, hosts, server=server or HERE)
        told = "give each device its own .pem and .key, and ca.pem" if devices else "devices ask for theirs with --csr"
        out.print(f"{len(written)} files in {folder}; {told}", soft_wrap=True)
    elif csr is not None:
        request, key = write_request(folder, csr, hosts.get(csr, ()))
        out.print(f"{request}: take it to the CA, which answers with a .pem; {key} stays here", soft_wrap=True)
    for asked in requests or ():
        path, names = sign(folder, asked)
        out.print(f"{path} is for {', '.join(names)}; give it and ca.pem to the device", soft_wrap=True)


def serve(
    experiment: File,
    address: Annotated[str, typer.Option(metavar="HOST:PORT", help="Where devices dial.")] = "0.0.0.0:8443",
    certificates: Annotated[Path | None, typer.Option(metavar="DIR", help="As potluck certificates wrote it.")] = None,
    insecure: Annotated[bool, typer.Option("--insecure", help="Plain HTTP on 127.0.0.1, for tests.")] = False,
    overrides: Overrides = None,
    folder: Annotated[Path | None, typer.Option("--out", metavar="DIR", help="The run folder.")] = None,
    quiet: Quiet = False,
) -> None:
    """Runs an experiment on real devices over Flower; the same command goes on where it stopped.

    Example: potluck serve recipes/digits.toml --address 0.0.0.0:8443 --certificates keys --out runs/fleet
    """
    from potluck.deploy.serve import ServeOptions
    from potluck.deploy.serve import serve as serving
    from potluck.experiment.config import Experiment
    from potluck.experiment.run import default_folder

    loaded = Experiment.load(experiment, overrides or ())
    if (certificates is None) != insecure:
        raise ConfigError(
            "--certificates DIR: missing; make one with potluck certificates, or take --insecure on 127.0.0.1"
        )
    place = folder or default_folder(loaded)
    served = ServeOptions(address=address, certificates=certificates)
    watched(lambda listener: serving(loaded, served, place, listener, told(quiet)), place, quiet, AGAIN)


def join(
    address: Annotated[str, typer.Argument(metavar="HOST:PORT", help="Where potluck serve listens.")],
    data: Annotated[str, typer.Option(metavar="npz:FILE", help="Its own training share, as split writes it.")],
    public: Annotated[str, typer.Option(metavar="npz:FILE", help="The shared set, where there is one.")] = "",
    test: Annotated[str, typer.Option(metavar="npz:FILE", help="What a model of its own is evaluated on.")] = "",
    tier: Annotated[str, typer.Option(metavar="NAME", help="Its tier: refused if the fleet has another.")] = "",
    key: Annotated[Path | None, typer.Option(help="Its key, peer-N.key, with peer-N.pem beside it.")] = None,
    ca: Annotated[Path | None, typer.Option(help="The CA's certificate.")] = None,
    number: Annotated[int | None, typer.Option("--id", help="Its number; by default its certificate's.")] = None,
    insecure: Annotated[bool, typer.Option("--insecure", help="Plain HTTP on 127.0.0.1, for tests.")] = False,
    store: Annotated[Path | None, typer.Option(metavar="DIR", help="Where it keeps its states.")] = None,
    experiment: Annotated[Path | None, typer.Option(metavar="FILE", help="Works for this experiment only.")] = None,
    patience: Annotated[float, typer.Option(min=0, help="Seconds to wait for a server that is not there.")] = 600.0,
    cold: Annotated[bool, typer.Option("--cold", help="Keeps no process warm: less memory, slower answers.")] = False,
) -> None:
    """Makes this machine a device of a run that potluck serve holds; it only dials out. Runs until it is stopped.

    Example: potluck join server.example:8443 --data npz:device-000.npz --tier phone --key peer-0.key --ca ca.pem
    """
    from potluck.deploy.join import JoinOptions
    from potluck.deploy.join import join as joining

    name = f"potluck-device-{number}" if key is None else f"potluck-{key.stem}"
    wanted = JoinOptions(
        address=address,
        data=data,
        public=public,
        test=test,
        tier=tier,
        key=key,
        ca=ca,
        number=number,
        insecure=insecure,
        store=store or Path(name),
        digest="" if experiment is None else _digest_of(experiment),
        patience_s=patience,
        warm=not cold,
    )
    try:
        joining(wanted, lambda line: out.print(escape(line), soft_wrap=True))
    except KeyboardInterrupt:
        err.print("stopped; the same command joins again (Flower lets a device in again after 60 s)")
        raise SystemExit(0) from None


def _digest_of(experiment: Path) -> str:
    from potluck.experiment.config import Experiment
    from potluck.experiment.resolve import resolve

    return resolve(Experiment.load(experiment)).digest


def flower_app(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Where the app goes; must be empty or new.")],
    experiment: File,
    overrides: Overrides = None,
    run_folder: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="The run folder, at the server.")
    ] = None,
) -> None:
    """Writes an app for Flower's own commands: flwr run DIR, on a SuperLink or on the simulation runtime.

    Example: potluck flower-app app recipes/digits.toml --out runs/digits
    """
    import uuid

    from potluck.deploy.flower_app import on_flower, write_app
    from potluck.experiment.config import Experiment
    from potluck.experiment.run import default_folder

    loaded = on_flower(Experiment.load(experiment, overrides or ())).experiment
    place = run_folder or default_folder(loaded)
    write_app(folder, loaded, place, uuid.uuid4().hex)
    out.print(f"{folder}: flwr run {folder} leaves its run folder at {place.resolve()}", soft_wrap=True)
