"""A server as a process of its own, started by the command line, and asked over real sockets."""

import json
import re
import signal
import socket
from pathlib import Path

import httpx

TOKEN = "a-token-of-the-tests-0123456789"
MODULES = (
    "edgekiln.pipeline.cli", "edgekiln.pipeline.shipping.server.listening", "edgekiln.runtime.serving.selecting",
    "onnxruntime", "PIL.Image", "PIL.JpegImagePlugin", "PIL.PngImagePlugin", "uvicorn.lifespan.off",
)  # fmt: skip


class Server:
    """``edgekiln serve`` on a port that the system chose."""

    def __init__(self, launcher, bundle, folder, *options, name="serve", **limits):
        # What the command does not let a user change, so that no test waits for a minute.
        setup = "import edgekiln.pipeline.shipping.server.limits as m; import dataclasses as d; " + "".join(
            f"m.Limits.__init__.__defaults__ = tuple({value!r} if f.name == {key!r} else old "
            "for f, old in zip(d.fields(m.Limits), m.Limits.__init__.__defaults__)); "
            for key, value in limits.items()
        )
        arguments = ("serve", bundle, "--port", "0", "--threads", "1", *options)
        self.process = launcher.start(
            *arguments, folder=folder, name=name, environment={"EDGEKILN_SERVE_TOKEN": TOKEN}, setup=setup
        )
        while "/?token=" not in (said := self.process.out.read_text()) and "address" not in said:
            launcher.listen(0.01)
            assert self.process.code is None, self.log
        self.port = int(re.search(r":(\d+)/", said)[1])
        self.address = f"http://127.0.0.1:{self.port}"

    @property
    def log(self) -> str:
        return self.process.log.read_text()

    def client(self, token=TOKEN, **options) -> httpx.Client:
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        return httpx.Client(base_url=self.address, headers=headers, timeout=30, trust_env=False, **options)

    def raw(self, data: bytes) -> "Connection":
        return Connection(self.port, data)

    def stop(self, number=signal.SIGTERM) -> int:
        self.process.send(number)
        return self.process.wait()

    def memory_mb(self) -> float:
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(r"VmRSS:\s+(\d+)", status)[1]) / 1024

    def descriptors(self) -> int:
        return len(list(Path(f"/proc/{self.process.pid}/fd").iterdir()))


class Connection:
    """A socket that sends what no HTTP library would."""

    def __init__(self, port, data):
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=30)
        self.socket.sendall(data)

    def send(self, data):
        self.socket.sendall(data)

    def read(self) -> bytes:
        """All until the server closes, or the whole answer where its length is told."""
        got = b""
        while True:
            head, end, body = got.partition(b"\r\n\r\n")
            length = re.search(rb"content-length: (\d+)", head.lower())
            if end and length and len(body) >= int(length[1]):
                return got
            try:
                more = self.socket.recv(65536)
            except ConnectionResetError:
                return got
            if not more:
                return got
            got += more

    def status(self) -> int:
        return int(self.read().split(b" ", 2)[1])

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.socket.close()


def error_of(response) -> dict:
    """The typed error of an answer that is a refusal."""
    document = response.json()
    assert document["ok"] is False
    assert document["error"]["message"].endswith((".", "?"))
    assert json.dumps(document)
    return document["error"]
