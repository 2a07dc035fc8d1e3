"""A local service that speaks OpenAI's protocol for embeddings, and misbehaves on request."""

import hashlib
import json
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np

WIDTH = 8
NEVER = 3600.0
"""Seconds after which nobody waits for an answer, nor for the thread that gives it."""


def vector_of(text, width=WIDTH):
    """The right answer: float32, not of length 1."""
    seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")
    return np.random.default_rng(seed).normal(size=width).astype(np.float32)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: "_Quiet"

    def log_message(self, *_args):
        pass

    def do_POST(self):
        server = self.server.owner
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        texts = self.texts_of(body)
        with server.lock:
            reply = server.replies.pop(0) if server.replies else server.always
            server.requests.append((reply, texts))
            server.bodies.append(body)
            server.paths.append(self.path)
            answered = server.answers is None or len(server.requests) <= server.answers
        time.sleep(server.delay if answered else NEVER)
        key = self.headers.get("Authorization", "")
        match reply:
            case "drop":
                self.close_connection = True
                self.connection.shutdown(socket.SHUT_RDWR)
            case "429":
                self.fail(429, "slow down", {"Retry-After": "0.2"})
            case "quota":
                self.fail(429, "you exceeded your quota", {"Retry-After": "999"})
            case "500" | "503":
                self.fail(int(reply), "the server\nis unwell.")
            case "echo 400" | "echo 401" | "echo 404" | "echo 500":
                self.fail(
                    int(reply[-3:]), f"headers were {key} and so on", {"X-Should-Retry": "false"}
                )
            case "echo half":
                self.fail(418, f"key {key[7:21]}… is a teapot's")
            case "html":
                self.send(200, b"<html>hello</html>", kind="text/html")
            case "cut":
                self.send(200, b'{"data": [{"index": 0, "embe')
            case "null":
                self.send(200, b'{"object": "list", "data": null}')
            case "slow":
                time.sleep(server.slow)
                self.answer(texts)
            case "at most 3" if len(texts) > 3:
                self.fail(413, f"batch of {len(texts)} > 3")
            case "no long ones" if max(map(len, texts)) > 100:
                self.fail(400, "a text is too long")
            case _:
                self.answer(texts, reply, body.get("dimensions"))

    def texts_of(self, body):
        return body["input"]

    def answer(self, texts, reply="ok", width=None):
        vectors = [vector_of(text, width or WIDTH).tolist() for text in texts]
        items = [{"object": "embedding", "index": i, "embedding": v} for i, v in enumerate(vectors)]
        match reply:
            case "fewer":
                items.pop()
            case "more":
                items.append({"object": "embedding", "index": len(items), "embedding": vectors[0]})
            case "twice the same number":
                items[-1]["index"] = 0
            case "wider":
                for item in items:
                    item["embedding"].append(1.0)
            case "ragged":
                items[-1]["embedding"].append(1.0)
            case "nan":
                items[0]["embedding"][0] = float("nan")
            case "boolean":
                items[0]["embedding"][0] = True
            case "text":
                items[0]["embedding"][0] = "0.5"
            case "overflow":
                items[0]["embedding"][0] = 1e300
            case "none":
                items[0]["embedding"][0] = None
            case "zeros":
                items[0]["embedding"] = [0.0] * WIDTH
            case "shuffled":
                items.reverse()
        usage = {"prompt_tokens": sum(map(len, texts)), "total_tokens": 0}
        body = {"object": "list", "model": "m", "data": items, "usage": usage}
        self.send(200, json.dumps(body).encode())

    def fail(self, status, message, headers=None):
        self.send(status, json.dumps({"error": {"message": message}}).encode(), headers)

    def send(self, status, body, headers=None, kind="application/json"):
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)


class _Quiet(ThreadingHTTPServer):
    daemon_threads = True
    owner: "EmbeddingServer"

    def handle_error(self, *_args):  # a client that was killed is expected
        pass


class EmbeddingServer:
    """A service on this machine; `with` starts and stops it."""

    handler = Handler

    def __init__(self, *replies, always="ok", delay=0.0, slow=3.0, answers=None):
        self.replies = list(replies)
        """How it answers the first requests, one each; then `always`."""
        self.always = always
        self.delay = delay
        """Seconds that every answer takes."""
        self.slow = slow
        """Seconds that an answer takes which is slow. Nobody waits for one at the end."""
        self.answers = answers
        """How many requests are answered; the others wait for ever. None: all."""
        self.requests = []
        """How each request was answered, and its texts, in order of arrival."""
        self.bodies = []
        self.paths = []
        self.lock = threading.Lock()
        self._server = _Quiet(("127.0.0.1", 0), self.handler)
        self._server.owner = self
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))

    @property
    def url(self):
        return f"http://127.0.0.1:{self._server.server_address[1]}/v1"

    @property
    def texts(self):
        """All texts that it was asked for, each time."""
        with self.lock:
            return [text for _, texts in self.requests for text in texts]

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_error):
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
