"""`landbridge map ...`: names, options and help of its commands; each is carried out in its own module."""

from __future__ import annotations

from typing import Annotated

import typer

from gateway.cli.options import DEFAULT_CONFIG, Config, File, Json, Region

app = typer.Typer(help="The tenant map: on this machine, and in the regions.", no_args_is_help=True)
dead_app = typer.Typer(help="Records from other regions that could not be taken in.", no_args_is_help=True)
app.add_typer(dead_app, name="dead")

Letter = Annotated[str, typer.Argument(metavar="TENANT", help="Whose record it is, as `list` names it.")]


@app.command()
def status(config: Config = DEFAULT_CONFIG, region: Region = None, file: File = None, as_json: Json = False) -> None:
    """Say what the store holds; of a replicated map also how far each region and gateway is.

    1 when the store is not complete, or this region's Redis does not answer.
    """
    from gateway.cli import map as command

    raise typer.Exit(command.status(config, region, file, as_json))


@app.command()
def confirm(
    config: Config = DEFAULT_CONFIG,
    region: Region = None,
    change: Annotated[
        str | None, typer.Option("--change", metavar="NAME", help="Only if this is the change that waits.")
    ] = None,
    restore: Annotated[
        bool,
        typer.Option("--restore", help="It is not meant: write back to Redis what it lacks (replicated map only)."),
    ] = False,
    as_json: Json = False,
) -> None:
    """Let the change that the loss guard holds up pass. 1 when none waits, 3 when another one does."""
    from gateway.cli import map as command

    raise typer.Exit(command.confirm(config, region, change, restore, as_json))


@app.command()
def digest(
    config: Config = DEFAULT_CONFIG,
    region: Region = None,
    recount: Annotated[bool, typer.Option("--recount", help="Count it anew from every record, and keep that.")] = False,
    peers: Annotated[bool, typer.Option("--peers", help="Compare with the other regions; name what differs.")] = False,
    as_json: Json = False,
) -> None:
    """Print the replicated map's digest. 1 when it did not hold, or when the regions' maps differ."""
    from gateway.cli import map_digest as command

    raise typer.Exit(command.digest(config, region, recount=recount, peers=peers, as_json=as_json))


@dead_app.command("list")
def dead_list(config: Config = DEFAULT_CONFIG, region: Region = None, as_json: Json = False) -> None:
    """List the dead letters of this region."""
    from gateway.cli import map_dead as command

    raise typer.Exit(command.list_letters(config, region, as_json))


@dead_app.command("show")
def dead_show(letter: Letter, config: Config = DEFAULT_CONFIG, region: Region = None, as_json: Json = False) -> None:
    """Show one, with the value that could not be read."""
    from gateway.cli import map_dead as command

    raise typer.Exit(command.show(config, region, letter, as_json))


@dead_app.command("retry")
def dead_retry(letter: Letter, config: Config = DEFAULT_CONFIG, region: Region = None) -> None:
    """Take in the record as its region has it now. 1 when it still cannot be read."""
    from gateway.cli import map_dead as command

    raise typer.Exit(command.retry(config, region, letter))


@dead_app.command("drop")
def dead_drop(letter: Letter, config: Config = DEFAULT_CONFIG, region: Region = None) -> None:
    """Forget one. A later valid record of the tenant does so too."""
    from gateway.cli import map_dead as command

    raise typer.Exit(command.drop(config, region, letter))
