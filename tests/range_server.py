"""A web server on 127.0.0.1: `python range_server.py FOLDER MODE`, of ranges, noranges, nohead and redirects."""

import re
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    folder = Path(sys.argv[1])
    mode = sys.argv[2]

    def do_HEAD(self):
        self.answer(b"", 403) if self.mode == "nohead" else self.do_GET()

    def do_GET(self):
        if self.mode == "redirects" and not self.path.startswith("/there/"):
            self.answer(b"", 302, {"Location": f"/there{self.path}"})
            return
        file = self.folder / self.path.removeprefix("/there").lstrip("/")
        if not file.is_file():
            self.answer(b"<html>nothing here</html>", 404)
            return
        content = file.read_bytes()
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        if not wanted or self.mode == "noranges":
            self.answer(content, 200)
            return
        first, last = int(wanted[1]), min(int(wanted[2] or len(content)), len(content) - 1)
        self.answer(content[first : last + 1], 206, {"Content-Range": f"bytes {first}-{last}/{len(content)}"})

    def answer(self, content: bytes, status: int, headers: dict[str, str] | None = None):
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(content))} | (headers or {})).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, format, *args):
        pass


if __name__ == "__main__":
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    print(f"http://127.0.0.1:{server.server_port}", flush=True)
    server.serve_forever()
