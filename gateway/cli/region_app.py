"""`landbridge region ...`: names, options and help of its commands; they are carried out in `region`."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from gateway.cli.options import DEFAULT_CONFIG, Actor, Config, Insecure, Json, Reason, Region, TokenFile
from gateway.core.switches import FAILOVER_ALL, FAILOVER_STANDBY, Name

app = typer.Typer(
    help="Switches for the whole region. They are set at its gateway on this machine, or at the one of --admin; with a "
    "replicated map all gateways of the region follow within a second. Every change needs a --reason.",
    no_args_is_help=True,
)

Admin = Annotated[str | None, typer.Option("--admin", metavar="URL", help="Another gateway's admin API.")]
Lasts = Annotated[str | None, typer.Option("--for", metavar="TIME", help="Switch back by itself after 30m, 2h ...")]
Force = Annotated[bool, typer.Option("--force", help="Do it although a rule of safety forbids it.")]


class OnOff(StrEnum):
    ON = "on"
    OFF = "off"


@app.command()
def status(
    config: Config = DEFAULT_CONFIG,
    region: Region = None,
    admin: Admin = None,
    token_file: TokenFile = None,
    insecure: Insecure = False,
    as_json: Json = False,
) -> None:
    """Show the switches: who set them, why, and until when."""
    from gateway.cli import region as command
    from gateway.cli.admin_client import Gateway

    raise typer.Exit(command.status(config, region, Gateway(admin, token_file, insecure), as_json))


@app.command()
def drain(
    reason: Reason = None,
    lasts: Lasts = None,
    force: Force = False,
    config: Config = DEFAULT_CONFIG,
    region: Region = None,
    actor: Actor = None,
    admin: Admin = None,
    token_file: TokenFile = None,
    insecure: Insecure = False,
    as_json: Json = False,
) -> None:
    """Send to other regions whoever one of them takes; nothing fails over to this one. 3 when some have no other."""
    from gateway.cli import region as command
    from gateway.cli.admin_client import Gateway

    gateway = Gateway(admin, token_file, insecure)
    wish = command.Wish(Name.DRAIN, "on", reason, actor, lasts, force)
    raise typer.Exit(command.switch(config, region, gateway, wish, as_json))


@app.command()
def undrain(
    reason: Reason = None,
    config: Config = DEFAULT_CONFIG,
    region: Region = None,
    actor: Actor = None,
    admin: Admin = None,
    token_file: TokenFile = None,
    insecure: Insecure = False,
    as_json: Json = False,
) -> None:
    """End a drain: clients come back one after the other, within some seconds."""
    from gateway.cli import region as command
    from gateway.cli.admin_client import Gateway

    gateway = Gateway(admin, token_file, insecure)
    raise typer.Exit(command.switch(config, region, gateway, command.Wish(Name.DRAIN, "", reason, actor), as_json))


@app.command("failover-mode")
def failover_mode(
    mode: Annotated[OnOff, typer.Argument(help="on: serve here, and forward nobody, whom this region stands by for.")],
    everybody: Annotated[
        bool, typer.Option("--all", help="Also tenants that do not name this region as a standby. Needs --force.")
    ] = False,
    reason: Reason = None,
    lasts: Lasts = None,
    force: Force = False,
    config: Config = DEFAULT_CONFIG,
    region: Region = None,
    actor: Actor = None,
    admin: Admin = None,
    token_file: TokenFile = None,
    insecure: Insecure = False,
    as_json: Json = False,
) -> None:
    """Serve requests of tenants that live elsewhere, whatever their `failover` says: for an evacuation."""
    from gateway.cli import region as command
    from gateway.cli.admin_client import Gateway

    value = "" if mode is OnOff.OFF else FAILOVER_ALL if everybody else FAILOVER_STANDBY
    gateway = Gateway(admin, token_file, insecure)
    wish = command.Wish(Name.FAILOVER_MODE, value, reason, actor, lasts, force)
    raise typer.Exit(command.switch(config, region, gateway, wish, as_json))


@app.command("max-traffic")
def max_traffic(
    limit: Annotated[
        str, typer.Argument(metavar="RATE", help="Requests to applications here, such as 500/s; or none.")
    ],
    reason: Reason = None,
    lasts: Lasts = None,
    config: Config = DEFAULT_CONFIG,
    region: Region = None,
    actor: Actor = None,
    admin: Admin = None,
    token_file: TokenFile = None,
    insecure: Insecure = False,
    as_json: Json = False,
) -> None:
    """Limit what the region takes on. Beyond it requests that failed over here are refused first (503)."""
    from gateway.cli import region as command
    from gateway.cli.admin_client import Gateway

    gateway = Gateway(admin, token_file, insecure)
    wish = command.Wish(Name.MAX_TRAFFIC, command.rate_of(limit), reason, actor, lasts)
    raise typer.Exit(command.switch(config, region, gateway, wish, as_json))
