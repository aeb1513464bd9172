"""A client that sends the same HTTP requests as the page, without a browser."""

import json
import pathlib
import urllib.error
import urllib.request
import uuid


class Visitor:
    """One session with the app at `address`."""

    def __init__(self, address: str):
        self.root = address.rstrip("/") + "/gradio_api"
        self.session = uuid.uuid4().hex
        config = json.load(_open(f"{self.root.removesuffix('/gradio_api')}/config"))
        (self.segmenting,) = [d for d in config["dependencies"] if len(d["inputs"]) == 7]
        components = {c["id"]: c["props"].get("elem_id") for c in config["components"]}
        self.names = [components[number] for number in self.segmenting["outputs"]]

    def upload(self, file: pathlib.Path) -> dict:
        """Uploads a file; what the page then sends as its value."""
        boundary = uuid.uuid4().hex.encode()
        head = f'Content-Disposition: form-data; name="files"; filename="{file.name}"\r\n\r\n'
        body = b"--%b\r\n%b%b\r\n--%b--\r\n" % (
            boundary,
            head.encode(),
            file.read_bytes(),
            boundary,
        )
        kind = {"Content-Type": f"multipart/form-data; boundary={boundary.decode()}"}
        (path,) = json.load(_open(f"{self.root}/upload", body, kind))
        return file_data(path, file.name)

    def segment(self, photo, words="dog", background=False, threshold=0.5, checkpoint="groupvit",
                dense=None, refine=False) -> dict | str:  # fmt: skip
        """Values of the page by element; or the message that the visitor sees."""
        data = [photo, words, background, threshold, checkpoint, dense, refine]
        body = {"data": data, "fn_index": self.segmenting["id"], "session_hash": self.session}
        kind = {"Content-Type": "application/json"}
        _open(f"{self.root}/queue/join", json.dumps(body).encode(), kind).close()
        with _open(f"{self.root}/queue/data?session_hash={self.session}") as events:
            for line in events:
                event = json.loads(line[6:]) if line.startswith(b"data: ") else {}
                if event.get("msg") == "process_completed":
                    break
        if not event["success"]:
            return event["output"]["error"] or ""
        return dict(zip(self.names, event["output"]["data"], strict=True))

    def fetch(self, update: dict) -> bytes:
        """The content of a file that a button offers."""
        with _open(update["value"]["url"]) as file:
            return file.read()


def file_data(path: str, name: str) -> dict:
    """A file as Gradio's page sends it."""
    return {"path": path, "orig_name": name, "meta": {"_type": "gradio.FileData"}}


def _open(address: str, body: bytes | None = None, headers: dict | None = None):
    request = urllib.request.Request(address, body, headers or {})
    return urllib.request.urlopen(request, timeout=120)
