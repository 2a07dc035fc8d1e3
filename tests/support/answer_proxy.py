"""A TCP proxy before an HTTP server, which can cut an answer after the server has done its work."""

import contextlib
import re
import socket
import struct
import threading
from collections.abc import Container

PIECE = 1 << 16


class AnswerProxy:
    """Passes connections on; the answer to the n-th PUT never arrives. `with` starts and ends it.

    Requests of one connection follow one another, each with its length, as HTTP/1.1 clients of S3
    send them.

    Args:
        port: where the server listens on 127.0.0.1.
        cut: numbers of the PUTs, from 0, whose answer is cut: the client's connection is reset
            once the first bytes of the answer are there, so the server has done what was asked.
        before_cut: called before an answer is cut.
        in_put: called with the path of each PUT of whose body the server has the first half.
        without: a header that the server never sees, as if it did not know it.
    """

    def __init__(
        self,
        port,
        *,
        cut: Container[int] = (),
        before_cut=lambda: None,
        in_put=lambda _path: None,
        without: str | None = None,
    ):
        self.cut, self.in_put = cut, in_put
        self.requests: list[str] = []
        """Method and path of every request, in order of arrival."""
        self._without = re.compile(rf"\r\n{without}:[^\r]*".encode(), re.IGNORECASE)
        self._before_cut = before_cut
        self._server_port = port
        self._numbering = threading.Lock()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._threads = [threading.Thread(target=self._accept)]
        self._sockets: list[socket.socket] = []

    @property
    def url(self):
        return f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    @property
    def puts(self):
        """Those of them that are PUTs."""
        return [request for request in self.requests if request.startswith("PUT ")]

    def __enter__(self):
        self._threads[0].start()
        return self

    def __exit__(self, *_error):
        for one in (self._listener, *self._sockets):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()
        for one in (self._listener, *self._sockets):
            one.close()

    def _accept(self):
        with contextlib.suppress(OSError):  # the listener was shut down, or nothing listens behind
            while True:
                client, _ = self._listener.accept()
                self._sockets.append(client)
                try:
                    server = socket.create_connection(("127.0.0.1", self._server_port))
                except ConnectionRefusedError:
                    client.shutdown(socket.SHUT_RDWR)
                    continue
                self._sockets.append(server)
                requests: list[int | None] = []  # the PUT's number of each, None if it is no PUT
                for target in (self._pass_requests, self._pass_answers):
                    thread = threading.Thread(target=target, args=(client, server, requests))
                    self._threads.append(thread)
                    thread.start()

    def _pass_requests(self, client, server, requests):
        buffer = b""
        with contextlib.suppress(OSError):
            while True:
                while b"\r\n\r\n" not in buffer:
                    if not (piece := client.recv(PIECE)):
                        raise ConnectionError
                    buffer += piece
                head, _, buffer = buffer.partition(b"\r\n\r\n")
                requests.append(self._number(head))
                server.sendall(self._without.sub(b"", head) + b"\r\n\r\n")
                length = re.search(rb"(?i)\r\ncontent-length: *(\d+)", head)
                n_bytes = int(length[1]) if length else 0
                buffer = self._pass_body(client, server, buffer, n_bytes // 2)
                if requests[-1] is not None:
                    self.in_put(head.split()[1].decode())
                buffer = self._pass_body(client, server, buffer, n_bytes - n_bytes // 2)
        _shut_down(server)

    def _pass_body(self, client, server, buffer, left):
        """Pass some bytes on, of which the buffer has the first; return what follows them."""
        while left:
            piece, buffer = buffer[:left], buffer[left:]
            piece = piece or client.recv(min(left, PIECE))
            if not piece:
                raise ConnectionError
            server.sendall(piece)
            left -= len(piece)
        return buffer

    def _number(self, head):
        """Number of a PUT among all PUTs; None for another request."""
        with self._numbering:
            self.requests.append(b" ".join(head.split()[:2]).decode())
            return len(self.puts) - 1 if head.startswith(b"PUT ") else None

    def _pass_answers(self, client, server, requests):
        with contextlib.suppress(OSError):
            while piece := server.recv(PIECE):
                if requests[-1] is not None and requests[-1] in self.cut:
                    self._before_cut()
                    linger = struct.pack("ii", 1, 0)  # so that the client gets a reset, no end
                    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                    client.shutdown(socket.SHUT_RD)  # the other thread lets go of it
                    client.close()
                    _shut_down(server)
                    return
                client.sendall(piece)
        _shut_down(client)


def _shut_down(one):
    with contextlib.suppress(OSError):
        one.shutdown(socket.SHUT_RDWR)
