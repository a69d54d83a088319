"""Options that several commands have, so that they are called and explained alike."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Final

import typer


class Format(StrEnum):
    """How tenants are written in a file."""

    YAML = "yaml"
    JSONL = "jsonl"


DEFAULT_CONFIG: Final = Path("config/gateway.yaml")

Config = Annotated[
    Path,
    typer.Option("-c", "--config", envvar="LANDBRIDGE_CONFIG", metavar="FILE", help="The gateway's configuration."),
]
Region = Annotated[
    str | None, typer.Option("--region", metavar="NAME", help="The region to be, instead of the configuration's.")
]
File = Annotated[
    Path | None,
    typer.Option("--file", "-f", metavar="FILE", help="Read this tenants file (by the rules of -c), not the store."),
]
DEFAULT_ADMIN: Final = "http://127.0.0.1:8081"
Admin = Annotated[str, typer.Option("--admin", metavar="URL", help="The gateway's admin API.")]
TokenFile = Annotated[Path | None, typer.Option("--token-file", metavar="FILE", help="Holds the token for --admin.")]
Insecure = Annotated[
    bool, typer.Option("--insecure", help="Allow plain HTTP to another machine: it and the way there see the token.")
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]

Input = Annotated[
    str,
    typer.Option("--file", "-f", metavar="FILE", help="Tenants as YAML, or JSON Lines (.jsonl); - is standard input."),
]
TenantFormat = Annotated[
    Format | None, typer.Option("--format", help="How the file is written (by its name: .jsonl, else YAML).")
]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]
Reason = Annotated[str | None, typer.Option("--reason", metavar="TEXT", help="Why: kept in records and audit log.")]
Actor = Annotated[
    str | None, typer.Option("--actor", metavar="NAME", help="Who (the user that calls it, at this host).")
]
Takeover = Annotated[
    bool,
    typer.Option("--takeover", help="Write here what belongs in a region whose Redis does not answer. Needs --reason."),
]
Force = Annotated[bool, typer.Option("--force", help="Do it although rules of safety forbid it. Needs --reason.")]
MovesMax = Annotated[
    str, typer.Option("--moves-max", metavar="SHARE", help="Tenants that may move at once: 10%, or a number.")
]
Wait = Annotated[bool, typer.Option("--wait", help="Return once every live gateway of every region uses it.")]
WaitLimit = Annotated[
    float, typer.Option("--wait-limit", min=0.0, metavar="SECONDS", help="How long --wait waits at most.")
]
