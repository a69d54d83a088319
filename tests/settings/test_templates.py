"""`{tenant}` in hosts, URLs and paths, and the grammar of every resolver."""

from __future__ import annotations

import pytest

from gateway.core.http1.fields import _REQUEST_NAMES, OWN_PREFIX, Seen
from gateway.core.view import HeaderResolver, PathResolver
from gateway.settings import templates
from gateway.settings.units import Wanted


@pytest.mark.parametrize(
    ("text", "host", "tenant"),
    [
        ("{tenant}.example.com", "acme.example.com", "acme"),
        ("{tenant}.Example.COM", "acme.example.com", "acme"),
        ("app.{tenant}.example.com", "app.acme.example.com", "acme"),
        ("{tenant}.example.com", "a.b.example.com", None),
        ("{tenant}.example.com", ".example.com", None),
        ("{tenant}.example.com", "example.com", None),
        ("app.example.com", "app.example.com", None),
    ],
)
def test_a_host_template_takes_one_label(text: str, host: str, tenant: str | None) -> None:
    assert templates.host_template(text).match(host) == tenant


@pytest.mark.parametrize("text", ["{tenant}.example.com", "x.{tenant}.y.z", "app.example.com"])
def test_a_host_template_writes_what_it_reads(text: str) -> None:
    template = templates.host_template(text)
    assert template.covers(template.render("acme"))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{tenant}",
        "{tenant}.{tenant}.com",
        "a{tenant}.com",
        "{tenant}b.com",
        "x.{tenant}",
        "{tenant}.com:80",
        "{tenant}.com.",
        "{tenant}..com",
        "{Tenant}.com",
        "a/b",
        "exa mple.com",
        "{tenant}.exämple.com",
        "{tenant}." + "a" * 64,
    ],
)
def test_no_host_template(text: str) -> None:
    with pytest.raises(Wanted, match="host"):
        templates.host_template(text)


@pytest.mark.parametrize(
    ("text", "rendered"),
    [
        ("https://{tenant}.eu.example.com", "https://acme.eu.example.com"),
        ("http://{tenant}.demo.localhost:8101", "http://acme.demo.localhost:8101"),
        ("https://app.example.com:443", "https://app.example.com"),
        ("http://10.0.0.1:80", "http://10.0.0.1"),
        ("http://app:443", "http://app:443"),
    ],
)
def test_public_url(text: str, rendered: str) -> None:
    assert templates.public_url(text).render("acme") == rendered


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("{tenant}.example.com", "http:// or https://"),
        ("ftp://x.y", "http:// or https://"),
        ("HTTPS://x.y", "http:// or https://"),
        ("https://x.y/", "not even a final /"),
        ("https://x.y/{tenant}", "not even a final /"),
        ("https://x.y?a", "not even a final /"),
        ("https://u@x.y", "not even a final /"),
        ("https://x.y:0", "a port from 1 to 65535"),
        ("https://x.y:http", "a port from 1 to 65535"),
        ("https://{tenant}.{tenant}.y", "at most one"),
        ("https://a-{tenant}.y", "one whole label"),
        ("https://", "a host name"),
    ],
)
def test_no_public_url(text: str, wanted: str) -> None:
    with pytest.raises(Wanted, match=wanted):
        templates.public_url(text)


def test_a_header_resolver_compares_names_as_the_codec_does() -> None:
    assert templates.resolver("header", "X_Tenant-ID") == HeaderResolver(b"x-tenant-id")


@pytest.mark.parametrize(
    "name",
    [
        "X-Tenant",
        "x_tenant",
        "X-Tenant-Epoch",
        "X-Tenant-Home",
        "X-Gateway-Region",
        "X-Gateway-Anything",
        "Gateway-Hop",
        "gateway_verdict",
        "X-Forwarded-For",
        "X_Forwarded_Host",
        "X-Request-Id",
        "Via",
        "Host",
        "Cookie",
        "Authorization",
        "Content-Length",
        "Transfer-Encoding",
        "Connection",
    ],
)
def test_a_header_resolver_never_names_a_field_of_ours_or_of_http(name: str) -> None:
    with pytest.raises(Wanted, match="neither the gateway's own nor HTTP's"):
        templates.resolver("header", name)


def test_every_field_that_the_codec_knows_is_refused_as_a_header_resolver() -> None:
    known = [*_REQUEST_NAMES, OWN_PREFIX + b"x"]
    assert Seen.OWN in {_REQUEST_NAMES[name] for name in _REQUEST_NAMES}
    for name in known:
        with pytest.raises(Wanted):
            templates.resolver("header", name.decode())


@pytest.mark.parametrize(
    ("text", "prefix", "suffix"),
    [("/t/{tenant}/", b"/t/", b"/"), ("/{tenant}", b"/", b""), ("/a/{tenant}/b", b"/a/", b"/b")],
)
def test_path_resolver(text: str, prefix: bytes, suffix: bytes) -> None:
    assert templates.resolver("path", text) == PathResolver(prefix, suffix)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "/t/",
        "t/{tenant}",
        "/t{tenant}/",
        "/{tenant}x",
        "/{tenant}/{tenant}",
        "/a b/{tenant}",
        "/%74/{tenant}",
        "/../{tenant}",
        "/{tenant}/./x",
        "/{tenant}/?a",
        "/ü/{tenant}",
    ],
)
def test_no_path_resolver(text: str) -> None:
    with pytest.raises(Wanted, match="a path"):
        templates.resolver("path", text)


@pytest.mark.parametrize(
    ("kind", "value", "wanted"),
    [
        ("host", "app.example.com", "a host with {tenant} in it"),
        ("header", "X Tenant", "a field name"),
        ("header", "", "a field name"),
        ("query", "a&b", "a parameter name"),
        ("query", "a%20", "a parameter name"),
        ("cookie", "a=b", "a cookie name"),
        ("cookie", "", "a cookie name"),
        ("fixed", "Acme", "a tenant id"),
        ("fixed", "a.b", "a tenant id"),
    ],
)
def test_no_resolver(kind: str, value: str, wanted: str) -> None:
    with pytest.raises(Wanted, match=wanted):
        templates.resolver(kind, value)
