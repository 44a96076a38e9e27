"""The commands of a real fleet. No logic here, as in cli.py, which adds them to its own."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from potluck.attend import attended
from potluck.display import out

AGAIN = "the same command goes on where this one stopped"
Overrides = Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a setting.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress, no table: only the run folder's path.")]
File = Annotated[Path, typer.Argument(metavar="EXPERIMENT.toml", help="The experiment file.")]


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
    overrides: Overrides = None,
    folder: Annotated[Path | None, typer.Option("--out", metavar="DIR", help="The run folder.")] = None,
    quiet: Quiet = False,
) -> None:
    """Plays one peer's part of an experiment without a server; the same command goes on where it stopped.

    Example: potluck peer peers.toml --id 0 --data npz:shares/device-000.npz --public npz:shares/public.npz
    --connect 1=tls/peer-b.example:7447 --cert keys/peer-0.pem --key keys/peer-0.key --ca keys/ca.pem
    """
    from potluck.engines.links import Links, by_id
    from potluck.experiment.config import Experiment
    from potluck.experiment.peer import Place, run_peer

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
    place = Place(links=links, data=data, public=public, test=test)
    out_dir = folder or Path("runs") / f"{loaded.name}-peer-{number}"
    attended(lambda listener: run_peer(loaded, place, out_dir, listener), out_dir, quiet, AGAIN)


def certificates(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Where they go; must be empty or new.")],
    devices: Annotated[int, typer.Option(help="How many peers, or devices.")],
    host: Annotated[
        list[str] | None, typer.Option(metavar="ID=NAME", help="A name or address that others dial; or server=NAME.")
    ] = None,
) -> None:
    """Writes a CA, a server's certificate, and a certificate and key for each device.

    Example: potluck certificates keys --devices 3 --host 0=peer-a.example --host 0=10.0.0.1 --host 1=peer-b.example
    """
    from potluck.engines.certificates import HERE, hosts_of, write_certificates

    server, hosts = hosts_of(host or ())
    written = write_certificates(folder, devices, hosts, server=server or HERE)
    out.print(f"{len(written)} files in {folder}; give each device its own .pem and .key, and ca.pem", soft_wrap=True)
