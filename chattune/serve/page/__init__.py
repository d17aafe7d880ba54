"""The page at ``/``: one file, nothing from elsewhere. Its policy allows the one script and the one style in it, by their digests."""

from __future__ import annotations

import base64
import functools
import hashlib
import re
from pathlib import Path


@functools.cache
def page() -> tuple[bytes, dict[str, str]]:
    """The page, and the headers that go with it. A script that somebody smuggles in does not run; no other site may frame it."""
    html = Path(__file__).with_name("index.html").read_text("utf-8")
    policy = (
        f"default-src 'none'; script-src {_digest(html, 'script')}; style-src {_digest(html, 'style')}; connect-src 'self'; "
        "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'"
    )
    headers = {
        "content-security-policy": policy, "content-type": "text/html; charset=utf-8", "referrer-policy": "no-referrer",
        "x-frame-options": "DENY", "cache-control": "no-cache", "cross-origin-opener-policy": "same-origin",
    }  # fmt: skip
    return html.encode(), headers


def _digest(html: str, element: str) -> str:
    """The CSP source that allows the one inline `element` of the page."""
    (inner,) = re.findall(f"<{element}>(.*?)</{element}>", html, re.DOTALL)
    return f"'sha256-{base64.b64encode(hashlib.sha256(inner.encode()).digest()).decode()}'"
