"""`landbridge tenants ...`: names, options and help of its commands; each is carried out in its own module."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gateway.cli.options import (
    DEFAULT_CONFIG,
    Actor,
    Config,
    File,
    Force,
    Input,
    Json,
    MovesMax,
    Reason,
    Region,
    Takeover,
    TenantFormat,
    Wait,
    WaitLimit,
    Yes,
)

app = typer.Typer(help="The tenant map's records.", no_args_is_help=True)

Tenant = Annotated[str, typer.Argument(help="The tenant's id.")]
Prune = Annotated[bool, typer.Option("--prune", help="Delete the tenants that are not in the file.")]


@app.command("list")
def list_(
    config: Config = DEFAULT_CONFIG,
    region: Region = None,
    file: File = None,
    home: Annotated[str | None, typer.Option("--home", metavar="REGION", help="Only those that live there.")] = None,
    state: Annotated[str | None, typer.Option("--state", help="Only those in this state.")] = None,
    as_json: Json = False,
) -> None:
    """List the tenants: where each lives, and who stands by."""
    from gateway.cli import tenants as command

    command.list_tenants(config, region, file, home, state, as_json)


@app.command()
def get(
    tenant: Tenant,
    config: Config = DEFAULT_CONFIG,
    region: Region = None,
    file: File = None,
    as_json: Json = False,
) -> None:
    """Show one tenant's record, whole."""
    from gateway.cli import tenants as command

    command.get_tenant(tenant, config, region, file, as_json)


@app.command()
def plan(
    file: Input,
    config: Config = DEFAULT_CONFIG,
    region: Region = None,
    format_: TenantFormat = None,
    prune: Prune = False,
    moves_max: MovesMax = "10%",
    detailed: Annotated[
        bool, typer.Option("--detailed-exitcode", help="Exit with 4 when something would change (0: nothing).")
    ] = False,
    as_json: Json = False,
) -> None:
    """Show what `apply` would change in the replicated map, and which rules of safety it would break."""
    from gateway.cli import apply as command

    raise typer.Exit(
        command.plan_file(
            config, region, file, format_, prune=prune, detailed=detailed, moves_max=moves_max, as_json=as_json
        )
    )


@app.command()
def apply(
    file: Input,
    config: Config = DEFAULT_CONFIG,
    region: Region = None,
    format_: TenantFormat = None,
    prune: Prune = False,
    yes: Yes = False,
    reason: Reason = None,
    actor: Actor = None,
    takeover: Takeover = False,
    force: Force = False,
    moves_max: MovesMax = "10%",
    wait: Wait = False,
    wait_limit: WaitLimit = 30.0,
    as_json: Json = False,
) -> None:
    """Make the replicated map what a file says: shows the plan, asks, writes. 3 when a rule of safety forbids it."""
    from gateway.cli import apply as command
    from gateway.cli.apply import Options

    options = Options(
        yes=yes,
        reason=reason,
        actor=actor,
        takeover=takeover,
        force=force,
        wait_s=wait_limit if wait else None,
        moves_max=moves_max,
        as_json=as_json,
    )
    raise typer.Exit(command.apply_file(config, region, file, format_, prune=prune, options=options))


@app.command()
def delete(
    tenants: Annotated[list[str], typer.Argument(metavar="TENANT...", help="Their ids.")],
    config: Config = DEFAULT_CONFIG,
    region: Region = None,
    yes: Yes = False,
    reason: Reason = None,
    actor: Actor = None,
    takeover: Takeover = False,
    force: Force = False,
    wait: Wait = False,
    wait_limit: WaitLimit = 30.0,
    as_json: Json = False,
) -> None:
    """Delete tenants from the replicated map; their requests get 404. Needs --reason; `rollback` brings one back."""
    from gateway.cli import apply as command
    from gateway.cli.apply import Options

    options = Options(
        yes=yes,
        reason=reason,
        actor=actor,
        takeover=takeover,
        force=force,
        wait_s=wait_limit if wait else None,
        as_json=as_json,
    )
    raise typer.Exit(command.delete(config, region, tenants, options))


@app.command("import")
def import_(
    file: Input,
    config: Config = DEFAULT_CONFIG,
    region: Region = None,
    format_: TenantFormat = None,
    merge: Annotated[
        bool, typer.Option("--merge", help="Add what is missing to a map that is not empty; change nothing in it.")
    ] = False,
    reason: Reason = None,
    actor: Actor = None,
    as_json: Json = False,
) -> None:
    """Fill an empty replicated map from a file, all of it written in this region. 3 when a map is not empty."""
    from gateway.cli import export as command
    from gateway.cli.apply import Options

    options = Options(reason=reason, actor=actor, as_json=as_json)
    raise typer.Exit(command.import_file(config, region, file, format_, merge=merge, options=options))


@app.command()
def export(
    config: Config = DEFAULT_CONFIG,
    region: Region = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="FILE", help="Instead of printing it.")
    ] = None,
    format_: TenantFormat = None,
) -> None:
    """Write the replicated map as a file that can be applied or imported."""
    from gateway.cli import export as command

    raise typer.Exit(command.export(config, region, output, format_))


@app.command()
def history(tenant: Tenant, config: Config = DEFAULT_CONFIG, region: Region = None, as_json: Json = False) -> None:
    """Show what a tenant's record was: each version with time, actor, reason, and what replaced it."""
    from gateway.cli import history as command

    raise typer.Exit(command.history(config, region, tenant, as_json))


@app.command()
def rollback(
    tenant: Tenant,
    config: Config = DEFAULT_CONFIG,
    region: Region = None,
    to: Annotated[
        str | None, typer.Option("--to", metavar="VERSION", help="As `history` lists it (the one before the current).")
    ] = None,
    yes: Yes = False,
    reason: Reason = None,
    actor: Actor = None,
    takeover: Takeover = False,
    force: Force = False,
    wait: Wait = False,
    wait_limit: WaitLimit = 30.0,
    as_json: Json = False,
) -> None:
    """Make a tenant again what an earlier version said, as a new version. Needs --reason."""
    from gateway.cli import history as command
    from gateway.cli.apply import Options

    options = Options(
        yes=yes,
        reason=reason,
        actor=actor,
        takeover=takeover,
        force=force,
        wait_s=wait_limit if wait else None,
        as_json=as_json,
    )
    raise typer.Exit(command.rollback(config, region, tenant, to, options))
