"""A small server on loopback that speaks the hub's paths, for tests of downloads: no more than needed.

``HEAD`` and ``GET`` of ``/NAME/resolve/REVISION/FILE`` and ``GET`` of ``/api/models/NAME``. It writes down
what it was asked for, and can be slow, dead, forbid a file or send another one than it announced.
"""

import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

COMMIT = "c0ffee00" * 5


class HubServer:
    """Serves ``models``: {hub name: folder}. Close it in the end."""

    def __init__(self, models: dict[str, Path]):
        self.models = models
        self.asked: list[tuple[str, str, str]] = []
        """(method, name, file), in order."""
        self.forbidden: set[str] = set()
        """Files that are announced and then not given."""
        self.exchanged: dict[str, bytes] = {}
        """Files that come with another content than announced."""
        self.awake = threading.Event()
        self.awake.set()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self._thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    @property
    def files_asked(self) -> set[str]:
        return {file for _, _, file in self.asked if file}  # old clients ask for no file too

    def close(self):
        self.awake.set()
        if self._thread.is_alive():
            self._server.shutdown()
            self._thread.join()
            self._server.server_close()


def _handler(hub: HubServer):
    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_):
            pass

        def do_HEAD(self):
            self.answer(with_body=False)

        def do_GET(self):
            self.answer(with_body=True)

        def answer(self, with_body: bool):
            hub.awake.wait(30)
            path = self.path.split("?")[0].removeprefix("/")
            if path.startswith("api/models/"):
                return self.about(path.removeprefix("api/models/").partition("/revision/")[0])
            name, _, rest = path.partition("/resolve/")
            file = rest.partition("/")[2]
            hub.asked.append((self.command, name, file))
            if name not in hub.models:
                return self.send(404, {"X-Error-Code": "RepoNotFound"})
            if not (hub.models[name] / file).is_file():
                return self.send(404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT})
            if with_body and file in hub.forbidden:
                return self.send(403, {"X-Repo-Commit": COMMIT})
            return self.file(file, (hub.models[name] / file).read_bytes(), with_body)

        def file(self, name: str, content: bytes, with_body: bool):
            etag = hashlib.sha256(content).hexdigest()
            if with_body:
                content = hub.exchanged.get(name, content)
            about = {"ETag": f'"{etag}"', "X-Repo-Commit": COMMIT, "Content-Length": len(content)}
            self.send(200, about)
            if with_body:
                self.wfile.write(content)

        def about(self, name: str):
            if name not in hub.models:
                return self.send(404, {"X-Error-Code": "RepoNotFound"})
            files = sorted(path.name for path in hub.models[name].iterdir())
            siblings = [{"rfilename": file} for file in files]
            content = json.dumps({"id": name, "sha": COMMIT, "siblings": siblings}).encode()
            self.send(200, {"Content-Type": "application/json", "Content-Length": len(content)})
            self.wfile.write(content)

        def send(self, status: int, headers: dict):
            self.send_response(status)
            for key, value in ({"Content-Length": 0} | headers).items():
                self.send_header(key, str(value))
            self.end_headers()

    return Handler
