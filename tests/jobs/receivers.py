"""Those who are told, for real and on loopback: web hooks of every temper, and a mail server."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from aiosmtpd.controller import Controller


@contextlib.contextmanager
def web_hook(status=200, answer=b"ok"):
    """A web hook that keeps what it is sent; gives its host and port, and the list of (path, JSON document)."""
    received = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            received.append((self.path, json.loads(body)))
            self.send_response(status)
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"127.0.0.1:{server.server_port}", received
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@contextlib.contextmanager
def silence(drip=False):
    """A service that takes a connection and never answers; with `drip`, one that answers for ever."""
    listener = socket.create_server(("127.0.0.1", 0))
    over = threading.Event()

    def serve():
        taken = []
        with contextlib.suppress(OSError):
            while not over.is_set():
                connection, _ = listener.accept()
                taken.append(connection)
                if drip:
                    connection.sendall(b"HTTP/1.1 200 OK\r\nX-Drip: ")
                    while not over.wait(0.2):
                        connection.sendall(b"x")
        for connection in taken:
            connection.close()

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield f"127.0.0.1:{listener.getsockname()[1]}"
    finally:
        over.set()
        with contextlib.suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join()


def nobody():
    """Host and port where nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return f"127.0.0.1:{listener.getsockname()[1]}"


@contextlib.contextmanager
def mail_server():
    """A mail server; gives its host and port, and the list of envelopes it took."""
    envelopes = []

    class Handler:
        async def handle_DATA(self, server, session, envelope):
            envelopes.append(envelope)
            return "250 OK"

    port = int(nobody().rpartition(":")[2])
    controller = Controller(Handler(), hostname="127.0.0.1", port=port)
    controller.start()
    try:
        yield f"127.0.0.1:{port}", envelopes
    finally:
        controller.stop()
