"""The commands that list what an experiment file may name: methods, models, sources, tasks."""

from __future__ import annotations

from typing import Annotated

import typer

from potluck.cli.display import show_list, show_page


def methods(
    name: Annotated[
        str, typer.Argument(help="One of them: its manual page, with options, profiles and messages.")
    ] = "",
) -> None:
    """Lists the methods, a line each, and where each comes from; or shows the page of one.

    Example: potluck methods fedhm
    """
    from potluck.methods import METHODS

    if name:
        from potluck.experiment.manual import page

        show_page(page(name))
        return
    show_list(METHODS, lambda method: (method.__doc__ or "").strip().splitlines()[0])


def sources() -> None:
    """Lists where data can come from, a line each, and what brings each.

    Example: potluck sources
    """
    from potluck.data.sources import SOURCES

    show_list(SOURCES, lambda source: source.summary, lambda source: source.form)


def models() -> None:
    """Lists the nets that [model] can name, a line each, and where each comes from.

    Example: potluck models
    """
    from potluck.nets import NETS

    show_list(NETS, lambda net: net.line)


def tasks() -> None:
    """Lists what can be learned, a line each, and where each task comes from.

    Example: potluck tasks
    """
    from potluck.tasks import TASKS

    show_list(TASKS, lambda task: (task.__doc__ or "").strip().splitlines()[0])
