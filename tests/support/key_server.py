"""A server of keys on a real socket: a key set at `/jwks`, single keys at `/pem/KID`, or whatever a test has it say."""

from __future__ import annotations

from dataclasses import dataclass, field

from tests.support.application import Application
from tests.support.tokens import Signer, key_set, signer


def answer(body: bytes, status: str = "200 OK", fields: str = "") -> bytes:
    return f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n{fields}\r\n".encode() + body


@dataclass
class KeyServer:
    """`says` instead of keys, where it is set. `application` is the socket, which can be closed and opened again."""

    signers: list[Signer] = field(default_factory=lambda: [signer("one")])
    says: bytes | None = None
    paths: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.application = Application(self.reply)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.application.port}"

    def reply(self, head: bytes) -> bytes:
        path = head.split(b" ")[1].decode()
        self.paths.append(path)
        if self.says is not None:
            return self.says
        if path == "/jwks":
            return answer(key_set(*self.signers).encode())
        found = [one for one in self.signers if path == f"/pem/{one.kid}"]
        return answer(found[0].pem()) if found else answer(b"", "404 Not Found")
