"""A fake of the Hugging Face hub with one model repository: its commit, its list of files, and the files themselves.

Tests point `huggingface_hub` at `url`; paths, headers and error codes are those that its client reads.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

from fakes.http_server import HttpServer, Reply, Request, json_reply

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class FakeModelHub(HttpServer):
    """The hub, running until it is closed; a context manager.

    Parameters
    ----------
    repository : str
        ``org/name``; any other is unknown.
    folder : Path
        Its files.
    revisions : tuple of str
        Names that stand for `COMMIT`.
    """

    def __init__(self, repository: str, folder: Path, revisions: tuple[str, ...] = ("main",)) -> None:
        self.repository = repository
        self.folder = folder
        self.revisions = (*revisions, COMMIT)
        super().__init__(self._reply)

    @property
    def downloaded(self) -> set[str]:
        """The files whose content was asked for."""
        resolved = [
            request.path for request in self.requests if request.method == "GET" and "/resolve/" in request.path
        ]
        return {path.split("/resolve/", 1)[1].partition("/")[2] for path in resolved}

    def _reply(self, request: Request) -> Reply:
        api, files = f"/api/models/{self.repository}", f"/{self.repository}/resolve/"
        if request.path == api:
            return self._info("main")
        if request.path.startswith(f"{api}/revision/"):
            return self._info(request.path.removeprefix(f"{api}/revision/"))
        if request.path.startswith(f"{api}/tree/"):
            return self._tree()
        if request.path.startswith(files):
            return self._file(request, request.path.removeprefix(files).partition("/")[2])
        return _error(401, "RepoNotFound", "Repository Not Found")

    def _info(self, revision: str) -> Reply:
        if revision not in self.revisions:
            return _error(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return json_reply({"id": self.repository, "modelId": self.repository, "sha": COMMIT, "siblings": []})

    def _tree(self) -> Reply:
        paths = sorted(path for path in self.folder.rglob("*") if path.is_file())
        return json_reply(
            [
                {
                    "type": "file",
                    "path": path.relative_to(self.folder).as_posix(),
                    "size": path.stat().st_size,
                    "oid": _oid(path.read_bytes()),
                }
                for path in paths
            ]
        )

    def _file(self, request: Request, name: str) -> Reply:
        path = self.folder / name
        if not path.is_file():
            return _error(404, "EntryNotFound", "Entry not found")
        content = path.read_bytes()
        headers = {"ETag": f'"{_oid(content)}"', "X-Repo-Commit": COMMIT}
        reply = Reply(200, content, "application/octet-stream", headers)
        if request.method != "HEAD":
            return reply
        return replace(reply, cut_after=0, headers={**headers, "Connection": "close"})  # a head alone, then the end


def _oid(content: bytes) -> str:
    return hashlib.sha1(content).hexdigest()


def _error(status: int, code: str, message: str) -> Reply:
    return json_reply({"error": message}, status, headers={"X-Error-Code": code, "X-Error-Message": message})
