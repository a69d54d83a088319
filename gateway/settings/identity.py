"""Tokens as resolvers: `jwt` and `alb` in `tenancy.resolvers`, and the files that hold their keys.

A key set in a file is part of the configuration: it is read together with it, judged with it, and kept with it in
`state_dir/config.last-good`, so that a worker verifies by the very keys that were validated. It holds public keys only,
or is refused. A URL is control's to ask; nothing is fetched to validate a configuration.
"""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

import msgspec

from gateway.core.jwks import ALGORITHMS, SET_BYTES_MAX, BadKeys, read_keys
from gateway.core.tokens import AUTHORIZATION, OIDC_FIELDS
from gateway.core.view import AlbResolver, JwtResolver, TokenResolver
from gateway.settings import templates
from gateway.settings.document import Leaf, Listing, Node, Path, Table, described, find
from gateway.settings.expansion import Unresolved, expand
from gateway.settings.scalars import duration
from gateway.settings.schema import AlbSettings, JwtSettings, ResolverSettings
from gateway.settings.shape import BAD, Items, Key, KeyFile, Record, Scalar, Walk, like
from gateway.settings.units import Wanted

CLAIM_CHARS_MAX: Final = 256
TEXT_CHARS_MAX: Final = 1024
KID: Final = "{kid}"
_ARN: Final = re.compile(
    r"arn:(aws[a-z-]*):elasticloadbalancing:([a-z0-9-]{1,32}):[0-9]{12}:loadbalancer/app/[A-Za-z0-9-]{1,32}/[0-9a-f]{16}\Z"
)
EXAMPLE_ARN: Final = "arn:aws:elasticloadbalancing:us-east-1:123456789012:loadbalancer/app/my-alb/0123456789abcdef"
ALB_KEYS: Final = {
    "aws": "https://public-keys.auth.elb.{region}.amazonaws.com/{kid}",
    "aws-us-gov": "https://s3-{region}.amazonaws.com/aws-elb-public-keys-prod-{region}/{kid}",
}
"""Where load balancers of a partition publish their keys."""
_HMAC: Final = re.compile(r"HS[0-9]+\Z", re.IGNORECASE)


def _url(text: str, what: str) -> str:
    """An https URL; http to this machine only, where nobody is in between."""
    try:
        parts = urlsplit(text)
        host, _ = parts.hostname or "", parts.port
    except ValueError:
        host = ""
    if not host or parts.scheme not in ("https", "http") or parts.fragment or not text.isprintable() or " " in text:
        raise Wanted(f"{what} such as https://id.example.com/jwks.json")
    if "@" in parts.netloc:
        raise Wanted(f"{what} without a user or password")
    if parts.scheme == "http" and not _is_loopback(host):
        raise Wanted(f"{what} that begins with https:// (plain http is for this machine only)")
    return text


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _algorithm(text: str) -> str:
    if text in ALGORITHMS:
        return text
    why = ""
    if _HMAC.match(text):
        why = " (with HMAC whoever may verify may also sign, and a public key is no secret)"
    elif text.lower() == "none":
        why = " (none is no signature)"
    raise Wanted(f"one of {', '.join(ALGORITHMS)}{why}")


def _header(text: str) -> str:
    name = text.lower().replace("_", "-")
    if name.encode() in (AUTHORIZATION, *OIDC_FIELDS):
        return name
    try:
        templates.resolver("header", text)
    except Wanted:
        raise Wanted("Authorization, or a field that is neither the gateway's own nor HTTP's") from None
    return name


def _claim(text: str) -> str:
    if not 0 < len(text) <= CLAIM_CHARS_MAX or not text.isprintable():
        raise ValueError("no claim")
    return text


def _text(text: str) -> str:
    if not 0 < len(text) <= TEXT_CHARS_MAX or not text.isprintable():
        raise ValueError("no text")
    return text


def _arn(text: str) -> str:
    if not _ARN.match(text):
        raise ValueError("no ARN")
    return text


def _alb_keys(text: str) -> str:
    if text.count(KID) != 1:
        raise Wanted("a URL with {kid} in it, once")
    return _url(text.replace(KID, "kid"), "a URL") and text


@dataclass(frozen=True, slots=True)
class OneOrMore:
    """A value, or a list of some."""

    kind: Scalar
    secret: bool = False

    @property
    def type_name(self) -> str:
        return f"{self.kind.type_name} or list of {self.kind.type_name}s"

    def read(self, walk: Walk, node: Node, path: Path) -> object:
        if isinstance(node, Listing) and not node.items:
            return walk.note(node, path, self.kind.expected, "an empty list")
        if isinstance(node, Listing):
            return Items(self.kind, distinct=True).read(walk, node, path)
        value = self.kind.read(walk, node, path)
        return value if value is BAD else (value,)

    def stand_in(self) -> object:
        return ("",)


@dataclass(frozen=True, slots=True)
class SomeItems(Items):
    """A list that is not empty."""

    def read(self, walk: Walk, node: Node, path: Path) -> object:
        if isinstance(node, Listing) and not node.items:
            return walk.note(node, path, "at least one", "an empty list")
        return Items.read(self, walk, node, path)


class KeyPlace:
    """Where keys are: a file (a relative path starts at the folder of the file that names it), or a URL."""

    type_name = "path or URL"
    secret = False

    def read(self, walk: Walk, node: Node, path: Path) -> object:
        text = walk.text(node, path) if isinstance(node, Leaf) and not node.is_null else ""
        if text is None:
            return BAD
        try:
            place = _place(text, node.source.folder)
        except Wanted as error:
            return walk.note(node, path, str(error), described(node))
        if not _is_url(place):
            problem = _wrong_file(walk.key_files.get(place))
            if problem:
                return walk.note(node, path, f"a key set (RFC 7517) in {place}", problem)
        return place

    def stand_in(self) -> object:
        return ""


def _is_url(place: str) -> bool:
    return "://" in place


def _place(text: str, folder: str) -> str:
    """Raises Wanted."""
    if _is_url(text):
        return _url(text, "a URL")
    if not text or "\0" in text:
        raise Wanted("a path, or a URL such as https://id.example.com/jwks.json")
    return os.path.abspath(os.path.join(folder, text))


def _wrong_file(file: KeyFile | None) -> str:
    if file is None:
        return "a file that was not read"
    if file.problem:
        return file.problem
    try:
        read_keys(file.text)
    except BadKeys as error:
        return str(error)
    return ""


ALGORITHM: Final = Scalar(
    "algorithm",
    f"one of {', '.join(ALGORITHMS)}",
    _algorithm,
    schema={"enum": list(ALGORITHMS)},
)
NAME: Final = Scalar("text", f"a text of at most {TEXT_CHARS_MAX} characters", _text, schema={"type": "string"})
CLAIM: Final = Scalar("claim", "a claim such as org_id or org.id", _claim, schema={"type": "string"})
LEEWAY: Final = Key(duration(0, 3600), "How far clocks may be apart when times are compared.", "30s")

JWT: Final = Record(
    JwtSettings,
    {
        "header": Key(
            Scalar(
                *("field", "a field name such as Authorization", _header),
                schema=like(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,128}"),
            ),
            "The field that holds the token; `Authorization` with the scheme Bearer.",
            "Authorization",
        ),
        "claim": Key(CLAIM, "Names the tenant: a claim's name, or a path with dots such as `org.id`.", required=True),
        "jwks": Key(
            KeyPlace(),
            "The key set: a file, which is watched, or a URL, which control asks. https, or this machine.",
            required=True,
        ),
        "algorithms": Key(
            SomeItems(ALGORITHM, distinct=True), "Those that are accepted, whatever a token says.", required=True
        ),
        "issuer": Key(OneOrMore(NAME), "What `iss` has to be.", required=True),
        "audience": Key(OneOrMore(NAME), "What has to be in `aud`.", required=True),
        "leeway": LEEWAY,
        "refresh": Key(duration(1, 86400), "How often a URL is asked for its keys, ±20 %.", "5m"),
    },
)
ALB: Final = Record(
    AlbSettings,
    {
        "claim": Key(CLAIM, "Names the tenant, as in `jwt`.", required=True),
        "alb_arn": Key(
            Scalar(
                "ARN",
                f"an ARN such as {EXAMPLE_ARN}",
                _arn,
                schema=like(_ARN),
            ),
            "The load balancer, as `signer` in the token has to name it.",
            required=True,
        ),
        "keys": Key(
            Scalar("URL template", "a URL with {kid} in it", _alb_keys, schema=like(r".+\{kid\}.*")),
            "Where its keys are, with `{kid}`; otherwise where AWS publishes those of the ARN's region.",
        ),
        "leeway": LEEWAY,
    },
)
TOKENS: Final = {"jwt": JWT, "alb": ALB}
"""Resolvers that are a mapping, by kind."""


def read_token(walk: Walk, kind: str, node: Node, path: Path) -> object:
    """The value of one such resolver as settings."""
    if not isinstance(node, Table):
        return walk.note(node, path, "a mapping", described(node))
    before = len(walk.problems)
    value = TOKENS[kind].read(walk, node, path)
    if len(walk.problems) > before:
        return BAD
    if isinstance(value, AlbSettings):
        if not value.keys and _partition(value.alb_arn) not in ALB_KEYS:
            expected = "a URL with {kid} in it, since it is not known where the keys of this ARN are"
            return walk.note(node, (*path, "keys"), expected, "nothing")
        return ResolverSettings(kind, alb=value)
    assert isinstance(value, JwtSettings)
    if _is_url(value.jwks):
        return ResolverSettings(kind, jwt=value)
    text = walk.key_files[value.jwks].text
    for index, algorithm in enumerate(value.algorithms):
        if not any(key.fits(algorithm) for key in read_keys(text)):
            item = find(node, ("algorithms", index))
            expected = f"an algorithm that a key in {value.jwks} is for"
            return walk.note(item, (*path, "algorithms", index), expected, described(item))
    return ResolverSettings(kind, jwt=msgspec.structs.replace(value, keys=text.decode(errors="replace")))


def resolver(settings: ResolverSettings) -> TokenResolver | None:
    """The value that decides; None where it is of another kind."""
    if settings.jwt is not None:
        jwt = settings.jwt
        return JwtResolver(
            header=jwt.header.lower().encode("ascii"),
            claim=jwt.claim,
            source=jwt.jwks,
            keys=jwt.keys,
            algorithms=jwt.algorithms,
            issuers=jwt.issuer,
            audiences=jwt.audience,
            leeway_s=jwt.leeway,
        )
    if settings.alb is not None:
        alb = settings.alb
        return AlbResolver(alb.claim, alb.alb_arn, alb_source(alb), alb.leeway)
    return None


def alb_source(alb: AlbSettings) -> str:
    """The URL of the keys, with `{kid}`."""
    region = alb.alb_arn.split(":")[3]
    return alb.keys or ALB_KEYS[_partition(alb.alb_arn)].replace("{region}", region)


def _partition(arn: str) -> str:
    return arn.split(":")[1]


def key_paths(root: Table, environ: Mapping[str, str]) -> list[str]:
    """The files that `jwks` names in a document, absolute; nothing for what cannot be read, as `load` will say."""
    resolvers = find(root, ("tenancy", "resolvers"))
    found = []
    for item in resolvers.items if isinstance(resolvers, Listing) else ():
        node = find(item, ("jwt", "jwks")) if isinstance(item, Table) else None
        if not isinstance(node, Leaf) or node.is_null:
            continue
        try:
            place = _place(expand(node.text, environ, node.source.folder), node.source.folder)
        except (Unresolved, Wanted):
            continue
        if not _is_url(place):
            found.append(place)
    return list(dict.fromkeys(found))


def read_key_files(paths: Iterable[str]) -> tuple[KeyFile, ...]:
    """Never raises: what cannot be read says so."""
    return tuple(map(_read, paths))


def _read(path: str) -> KeyFile:
    try:
        with open(path, "rb") as file:
            text = file.read(SET_BYTES_MAX + 1)
    except OSError as error:
        return KeyFile(path, problem=(error.strerror or "an error").lower())
    return KeyFile(path, text)
