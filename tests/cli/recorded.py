"""A server that forwards to `scrimp serve`, but answers chats with a recorded stream: the page's tests need an answer with
Markdown, and the tiny models have random weights."""

import http.server
import json
import threading
import time
import urllib.error
import urllib.request

HEADERS = ("Content-Type", "Content-Security-Policy", "ETag", "Cache-Control")


class Recorded:
    """The address is `url`. `answers`: texts, or (reasoning, text), used cyclically. `requests`: the bodies of the chats."""

    def __init__(self, target, answers, piece=4, interval=0.004):
        self.answers, self.requests, self.piece, self.interval = answers, [], piece, interval
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_):
                pass

            def do_GET(self):
                request = urllib.request.Request(target + self.path)
                try:
                    with urllib.request.urlopen(request, timeout=30) as answer:
                        self.reply(answer.status, answer.headers, answer.read())
                except urllib.error.HTTPError as e:
                    self.reply(e.code, e.headers, e.read())

            def reply(self, status, headers, body):
                self.send_response(status)
                for name in HEADERS:
                    if headers[name]:
                        self.send_header(name, headers[name])
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                answer = outer.answers[len(outer.requests) % len(outer.answers)]
                outer.requests.append(body)
                thinking, text = answer if isinstance(answer, tuple) else ("", answer)
                self.send_response(200)
                self.send_header("Content-Type", "text/event-stream")
                self.send_header("Connection", "close")
                self.end_headers()
                self.close_connection = True
                try:
                    for name, whole in (("reasoning_content", thinking), ("content", text)):
                        for i in range(0, len(whole), outer.piece):
                            self.event({"choices": [{"index": 0, "delta": {name: whole[i:i + outer.piece]}}]})
                            time.sleep(outer.interval)
                    n = len(text) // outer.piece
                    factor = body.get("kv_shrink", 1)
                    self.event({"choices": [], "usage": {
                        "prompt_tokens": 100, "completion_tokens": n, "kv_bytes": (n + 100) * 10_000 // factor,
                        "kv_bytes_full": (n + 100) * 10_000, "kv_tokens": n + 100}})
                    self.wfile.write(b"data: [DONE]\n\n")
                except (BrokenPipeError, ConnectionResetError):
                    pass

            def event(self, chunk):
                self.wfile.write(b"data: " + json.dumps(chunk).encode() + b"\n\n")
                self.wfile.flush()

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def stop(self):
        self.server.shutdown()
        self.server.server_close()
