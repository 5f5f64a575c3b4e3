"""An identity provider of the tests' own: publishes its keys on a loopback port, and signs what it is told to."""

from __future__ import annotations

import base64
import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from jwt.algorithms import ECAlgorithm, RSAAlgorithm

AUDIENCE = "llama-orch"


class IdentityProvider:
    """Answers until :meth:`close`."""

    def __init__(self) -> None:
        #: private keys by the names under which their public halves are published
        self.keys: dict[str, Any] = {}
        self.published: list[str] = []
        #: how often it was asked for its keys
        self.asked = 0
        #: what it answers instead of its keys
        self.broken = False
        provider = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                found = provider.answer(self.path)
                body = json.dumps(found).encode()
                self.send_response(500 if provider.broken else 200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *_args: object) -> None:
                """It says nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.issuer = f"http://127.0.0.1:{self._server.server_address[1]}/realms/lab"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()
        self.add("one")

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(10)

    def add(self, kid: str, kind: str = "RSA") -> None:
        """A new key, published."""
        made: Any = ec.generate_private_key(ec.SECP256R1())
        self.keys[kid] = rsa.generate_private_key(65537, 2048) if kind == "RSA" else made
        self.published.append(kid)

    def answer(self, path: str) -> dict[str, Any]:
        if path.endswith("/.well-known/openid-configuration"):
            return {"issuer": self.issuer, "jwks_uri": f"{self.issuer}/certs"}
        self.asked += 1
        return {"keys": [{"kty": "oct", "k": "c2VjcmV0", "kid": "symmetric"}, *map(self._public, self.published)]}

    def _public(self, kid: str) -> dict[str, Any]:
        key = self.keys[kid].public_key()
        algorithm: Any = ECAlgorithm if isinstance(key, ec.EllipticCurvePublicKey) else RSAAlgorithm
        found: dict[str, Any] = algorithm.to_jwk(key, as_dict=True)
        return found | {"kid": kid, "use": "sig"}

    def token(self, subject: str = "alice", *, kid: str = "one", algorithm: str = "RS256", **changes: Any) -> str:
        """A signed token; a change of ``None`` leaves a claim out."""
        claims = {
            "iss": self.issuer,
            "aud": AUDIENCE,
            "sub": subject,
            "exp": int(time.time()) + 300,
            "scope": "openid",
        } | changes
        kept = {name: value for name, value in claims.items() if value is not None}
        return jwt.encode(kept, self.keys[kid], algorithm=algorithm, headers={"kid": kid})


def part(value: dict[str, Any]) -> str:
    """A part of a token that is made by hand."""
    return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=").decode()
