"""`landbridge breakers ...`: names, options and help of its commands; they are carried out in `breakers`."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from gateway.cli.options import DEFAULT_ADMIN, Admin, Insecure, Json, Reason, TokenFile

app = typer.Typer(
    help="Circuit breakers of one gateway, by its admin API. A change holds for this gateway, needs a --reason and an "
    "operator's --token-file, and is written to the audit log.",
    no_args_is_help=True,
)

Cluster = Annotated[str, typer.Argument(help="A cluster, such as app or region:eu-west-1.")]
Tenant = Annotated[
    str | None, typer.Option("--tenant", metavar="ID", help="This tenant's breaker at the cluster, not the cluster's.")
]
Lasts = Annotated[str, typer.Option("--for", metavar="TIME", help="How long it holds, such as 10m; 168h at most.")]


class Side(StrEnum):
    OPEN = "open"
    CLOSED = "closed"


@app.command("list")
def list_(
    admin: Admin = DEFAULT_ADMIN,
    token_file: TokenFile = None,
    insecure: Insecure = False,
    as_json: Json = False,
) -> None:
    """Show every cluster's breaker, and those of tenants that are not closed."""
    from gateway.cli import breakers as command
    from gateway.cli.admin_client import Gateway

    raise typer.Exit(command.listed(Gateway(admin, token_file, insecure), as_json))


@app.command()
def force(
    cluster: Cluster,
    side: Annotated[Side, typer.Argument(help="open: nothing passes. closed: everything does, whatever fails.")],
    lasts: Lasts = "10m",
    reason: Reason = None,
    tenant: Tenant = None,
    admin: Admin = DEFAULT_ADMIN,
    token_file: TokenFile = None,
    insecure: Insecure = False,
    as_json: Json = False,
) -> None:
    """Hold a breaker open or closed for a time; then it judges by itself again."""
    from gateway.cli import breakers as command
    from gateway.cli.admin_client import Gateway

    gateway = Gateway(admin, token_file, insecure)
    raise typer.Exit(command.force(gateway, cluster, tenant, side.value, lasts, reason, as_json))


@app.command()
def clear(
    cluster: Cluster,
    reason: Reason = None,
    tenant: Tenant = None,
    admin: Admin = DEFAULT_ADMIN,
    token_file: TokenFile = None,
    insecure: Insecure = False,
    as_json: Json = False,
) -> None:
    """Let a breaker judge by itself again; one that is open lets probes through at once."""
    from gateway.cli import breakers as command
    from gateway.cli.admin_client import Gateway

    gateway = Gateway(admin, token_file, insecure)
    raise typer.Exit(command.force(gateway, cluster, tenant, "auto", "", reason, as_json))
