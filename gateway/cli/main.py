"""The command line's front: names, options and help of every command; each is carried out in its own module.

Modules are imported by the command that needs them, so that `--help` and `serve` load nothing of the others.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from gateway import __version__
from gateway.cli import breakers_app, map_app, region_app, tenants_app
from gateway.cli.options import DEFAULT_ADMIN, DEFAULT_CONFIG, Admin, Config, File, Insecure, Json, Region, TokenFile
from gateway.cli.output import Exit, fail, print_json, print_record, print_table

app = typer.Typer(
    name="landbridge",
    help="A region-aware routing gateway: serves, carries or redirects every request by its tenant's home region.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
filters_app = typer.Typer(help="What every request passes through, in order.", no_args_is_help=True)
demo_app = typer.Typer(help="Three regions on this machine, to try everything with.", invoke_without_command=True)
app.add_typer(tenants_app.app, name="tenants")
app.add_typer(map_app.app, name="map")
app.add_typer(region_app.app, name="region")
app.add_typer(breakers_app.app, name="breakers")
app.add_typer(filters_app, name="filters")
app.add_typer(demo_app, name="demo")

BasePort = Annotated[int | None, typer.Option("--base-port", min=1024, max=65000, help="Moves all ports (8000).")]
Directory = Annotated[
    Path | None, typer.Option("--dir", metavar="DIR", help="Where the demo keeps its files (.demo/BASE-PORT).")
]


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"landbridge {__version__}")
        raise typer.Exit(0)


@app.callback()
def _root(
    show_version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


@app.command()
def serve(config: Config = DEFAULT_CONFIG, region: Region = None) -> None:
    """Run the gateway: supervisor, control and workers. SIGHUP reloads, SIGTERM drains."""
    from gateway.cli.serve import serve as command

    raise typer.Exit(command(config, region))


@app.command()
def check(
    config: Config = DEFAULT_CONFIG,
    region: Region = None,
    schema: Annotated[bool, typer.Option("--schema", help="Print the configuration's JSON Schema instead.")] = False,
) -> None:
    """Validate configuration and tenants file: 0 valid, 2 not, one line for every problem."""
    from gateway.cli import check as command

    if schema:
        raise typer.Exit(command.print_schema())
    raise typer.Exit(command.check(config, os.environ, region))


@app.command()
def throttles(
    admin: Admin = DEFAULT_ADMIN,
    token_file: TokenFile = None,
    insecure: Insecure = False,
    as_json: Json = False,
) -> None:
    """Show the limits of a running gateway that refuse, or are about to, by its admin API."""
    from gateway.cli.admin_client import Gateway
    from gateway.cli.throttles import throttles as command

    raise typer.Exit(command(Gateway(admin, token_file, insecure), as_json))


@app.command()
def explain(
    host: Annotated[str, typer.Option("--host", metavar="NAME", help="The request's Host.")],
    config: Config = DEFAULT_CONFIG,
    entry: Annotated[
        str | None, typer.Option("--from", metavar="REGION", help="The region where it enters (the configuration's).")
    ] = None,
    method: Annotated[str, typer.Option("--method", metavar="NAME")] = "GET",
    path: Annotated[str, typer.Option("--path", metavar="TARGET", help="Path and query.")] = "/",
    header: Annotated[list[str] | None, typer.Option("--header", metavar="'NAME: VALUE'", help="May repeat.")] = None,
    file: File = None,
    admin: Annotated[
        str | None, typer.Option("--admin", metavar="URL", help="Ask the running gateway whose admin API is there.")
    ] = None,
    token_file: TokenFile = None,
    insecure: Insecure = False,
    as_json: Json = False,
) -> None:
    """Say what would happen to a request, and which rule decides: by the code that decides requests.

    Applications and other regions are taken to be able. The map is the store of -c where a gateway has run, else the
    tenants file that the configuration names. With --admin a running gateway says it, by all that it knows now. A
    refusal is an answer too: exit 0.
    """
    from gateway.cli.explain import as_json as to_json
    from gateway.cli.explain import ask_gateway, summary
    from gateway.cli.explain import explain as decide
    from gateway.cli.tenants import lookup_of, settings_of
    from gateway.identity.verifier import verifier_for
    from gateway.store.token_keys import read_kept

    if admin is not None:
        if entry is not None or file is not None:
            fail("--admin asks that very gateway: it takes neither --from nor --file", Exit.BAD_INPUT)
        answer = ask_gateway(*(admin, token_file, insecure), host=host, method=method, path=path, headers=header or [])
        source = f"of the gateway at {admin}"
    elif token_file is not None or insecure:
        fail("--token-file and --insecure are for --admin", Exit.BAD_INPUT)
    else:
        settings = settings_of(config, entry)
        with lookup_of(settings, file) as found:
            answer = decide(
                *(found.view, found.host_owner, found.placement, True),
                host=host,
                method=method,
                path=path,
                headers=header or [],
                arrived=found.arrived,
                tokens=verifier_for(found.view, read_kept(Path(settings.state_dir)).values()),
            )
        source = found.source
    if as_json:
        print_json(to_json(answer) | {"map": source})
        return
    print_table(("rule tried", "what came of it"), answer.steps)
    print_record([*summary(answer), ("map", source)])


@filters_app.command("list")
def filters_list(config: Config = DEFAULT_CONFIG, region: Region = None, as_json: Json = False) -> None:
    """List the filters in the order of a request, those of your own among them, with their state in what runs."""
    from gateway.cli import filters as command

    command.list_filters(config, region, as_json)


@demo_app.callback()
def demo(context: typer.Context, base_port: BasePort = None, directory: Directory = None) -> None:
    """Run three regions on this machine; Ctrl-C stops them."""
    context.obj = (base_port, directory)
    if context.invoked_subcommand is None:
        from gateway.cli.demo import demo as command
        from gateway.cli.demo_files import layout

        raise typer.Exit(command(layout(base_port, directory)))


RegionArgument = Annotated[str, typer.Argument(metavar="REGION", help="us-east-1, eu-west-1 or ap-southeast-2.")]


def _tell_demo(
    context: typer.Context, verb: str, region: str | None, base_port: int | None, directory: Path | None
) -> None:
    from gateway.cli.demo_files import layout
    from gateway.cli.demo_tell import tell

    outer_port, outer_directory = context.obj
    place = layout(base_port or outer_port, directory or outer_directory)
    raise typer.Exit(tell(place, verb, region))


@demo_app.command("stop-app")
def demo_stop_app(
    context: typer.Context, region: RegionArgument, base_port: BasePort = None, directory: Directory = None
) -> None:
    """Stop one region's application in the running demo (kill -9), to see failover."""
    _tell_demo(context, "stop-app", region, base_port, directory)


@demo_app.command("start-app")
def demo_start_app(
    context: typer.Context, region: RegionArgument, base_port: BasePort = None, directory: Directory = None
) -> None:
    """Start it again."""
    _tell_demo(context, "start-app", region, base_port, directory)


@demo_app.command("cut")
def demo_cut(
    context: typer.Context, region: RegionArgument, base_port: BasePort = None, directory: Directory = None
) -> None:
    """Cut the replication between one region and the others in the running demo, to see lag grow."""
    _tell_demo(context, "cut", region, base_port, directory)


@demo_app.command("heal")
def demo_heal(
    context: typer.Context,
    region: Annotated[
        str | None, typer.Argument(metavar="REGION", help="One region only; without it all that are cut.")
    ] = None,
    base_port: BasePort = None,
    directory: Directory = None,
) -> None:
    """Connect it again, to see lag shrink and what was written on both sides meet."""
    _tell_demo(context, "heal", region, base_port, directory)


@demo_app.command("stop-valkey")
def demo_stop_valkey(
    context: typer.Context, region: RegionArgument, base_port: BasePort = None, directory: Directory = None
) -> None:
    """Stop one region's Valkey server in the running demo (kill -9): requests go on without it."""
    _tell_demo(context, "stop-valkey", region, base_port, directory)


@demo_app.command("start-valkey")
def demo_start_valkey(
    context: typer.Context, region: RegionArgument, base_port: BasePort = None, directory: Directory = None
) -> None:
    """Start it again, with the data that it left."""
    _tell_demo(context, "start-valkey", region, base_port, directory)


def main() -> NoReturn:
    """The console script. An error that no command foresaw is one line too, and says how to see more."""
    try:
        app()
    except BrokenPipeError:  # `landbridge tenants list | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        sys.exit(Exit.DONE)
    except Exception as error:
        if os.environ.get("LANDBRIDGE_TRACEBACK"):
            raise
        print(f"landbridge: internal error: {type(error).__name__}: {error}", file=sys.stderr)
        print("landbridge: LANDBRIDGE_TRACEBACK=1 shows where", file=sys.stderr)
        sys.exit(Exit.FAILED)
    sys.exit(Exit.DONE)
