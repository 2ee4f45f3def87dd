"""The web page at `/`, its files, and the frame in which pages that a model wrote are shown.

Text of a model never becomes part of the page: `Content-Security-Policy` allows the page its own files alone, and
trusted types refuse every string as HTML. A generated page runs in an iframe with `sandbox="allow-scripts"`, which has
an origin of its own. It is loaded from `/static/frame.html`, a small fixed file with headers of its own, and gets its
source by `postMessage`: an iframe with `srcdoc` or a `blob:` address would inherit the policy of the page, which
forbids inline scripts, and that one must not be loosened. The frame's headers say `sandbox` once more, so that the file
is harmless wherever it is opened, and refuse every connection. docs/web.md lists what is kept out, and what is not.
"""

import hashlib
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from fastapi import APIRouter, HTTPException, Request, Response

WEB = Path(__file__).resolve().parent / "web"
CONTENT_TYPES = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; frame-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'"
)
# Inline scripts and styles are what a generated page consists of; nothing may be fetched, sent or opened.
FRAME_POLICY = (
    "sandbox allow-scripts; default-src 'none'; script-src 'unsafe-inline' 'unsafe-eval'; style-src 'unsafe-inline'; "
    "img-src data: blob:; media-src data: blob:; font-src data:; connect-src 'none'; frame-src 'none'; "
    "worker-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'self'"
)
DENIED_FEATURES = "camera=(), microphone=(), geolocation=(), usb=(), serial=(), payment=()"
COMMON_HEADERS = {
    "Cache-Control": "no-cache",  # kept, but asked for again each time: a new version is seen at once
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": DENIED_FEATURES,
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-DNS-Prefetch-Control": "off",
}
PAGE_HEADERS = {
    "Content-Security-Policy": PAGE_POLICY,
    "Cross-Origin-Opener-Policy": "same-origin",
    "X-Frame-Options": "DENY",
}
FRAME_HEADERS = {"Content-Security-Policy": FRAME_POLICY, "X-Frame-Options": "SAMEORIGIN"}

router = APIRouter(include_in_schema=False)


@dataclass(frozen=True, slots=True)
class WebFile:
    """A file of the page as it is sent."""

    content: bytes
    content_type: str
    etag: str


@cache
def web_files() -> dict[str, WebFile]:
    """The files of the page by name, read once."""
    return {path.name: _read(path) for path in sorted(WEB.iterdir()) if path.suffix in CONTENT_TYPES}


def _read(path: Path) -> WebFile:
    content = path.read_bytes()
    return WebFile(content, CONTENT_TYPES[path.suffix], f'"{hashlib.sha256(content).hexdigest()[:20]}"')


@router.api_route("/", methods=["GET", "HEAD"])
async def page(request: Request) -> Response:
    """The page."""
    return _answer(request, web_files()["index.html"], PAGE_HEADERS)


@router.api_route("/static/frame.html", methods=["GET", "HEAD"])
async def frame(request: Request) -> Response:
    """The empty page that shows a generated one."""
    return _answer(request, web_files()["frame.html"], FRAME_HEADERS)


@router.api_route("/static/{name}", methods=["GET", "HEAD"])
async def static_file(request: Request, name: str) -> Response:
    """A script, a stylesheet or a picture of the page."""
    file = web_files().get(name)
    if file is None or name.endswith(".html"):
        raise HTTPException(404, f"there is no file {name!r} here")
    return _answer(request, file, {})


def _answer(request: Request, file: WebFile, headers: dict[str, str]) -> Response:
    headers = {**COMMON_HEADERS, **headers, "ETag": file.etag}
    known = [tag.strip().removeprefix("W/") for tag in request.headers.get("if-none-match", "").split(",")]
    if file.etag in known:
        return Response(status_code=304, headers=headers)
    content = b"" if request.method == "HEAD" else file.content
    headers["Content-Length"] = str(len(file.content))
    return Response(content, headers=headers, media_type=file.content_type)
