"""An OpenAI-compatible server of the standard library, small but real: what the tests start as somebody's engine.

It is 503 for a moment, asks for the key in TOY_KEY where there is one, starts a process of its own, and can crash.
"""

import argparse
import json
import os
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

USAGE = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        if self.path == "/ready":
            warm = time.monotonic() > self.server.warm
            return self.say({"pid": os.getpid(), "child": self.server.child} if warm else {}, 200 if warm else 503)
        if self.path == "/v1/models" and self.allowed():
            return self.say({"object": "list", "data": [{"id": name, "object": "model"} for name in ("other", MODEL)]})
        return self.say({"error": {"message": "no"}}, 404 if self.allowed() else 401)

    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path == "/die":
            print("out of toy memory", flush=True)
            os._exit(7)
        if not self.allowed():
            return self.say({"error": {"message": "wrong key"}}, 401)
        if asked["model"] != MODEL:
            return self.say({"error": {"message": "no such model"}}, 404)
        answer = {"id": "1", "object": "chat.completion", "created": 1, "model": MODEL, "usage": USAGE}
        text = {"role": "assistant", "content": "Hello there"}
        if not asked.get("stream"):
            return self.say({**answer, "choices": [{"index": 0, "message": text, "finish_reason": "stop"}]})
        chunks = [{"choices": [{"index": 0, "delta": text}], "usage": None}, {"choices": [], "usage": USAGE}]
        kind = {"object": "chat.completion.chunk"}
        events = [*(json.dumps({**answer, **kind, **chunk}) for chunk in chunks), "[DONE]"]
        return self.send("".join(f"data: {event}\n\n" for event in events).encode(), "text/event-stream")

    def allowed(self):
        key = os.environ.get("TOY_KEY")
        return not key or self.headers.get("Authorization") == f"Bearer {key}"

    def say(self, value, status=200):
        self.send(json.dumps(value).encode(), "application/json", status)

    def send(self, body, kind, status=200):
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    for option in ("--model", "--host", "--length"):
        parser.add_argument(option, required=True)
    parser.add_argument("--port", type=int, required=True)
    given = parser.parse_args()
    MODEL = given.model
    if MODEL == "broken":
        sys.exit("cannot read the weights in /home/ann/broken")
    server = ThreadingHTTPServer((given.host, given.port), Handler)
    server.warm = time.monotonic() + 0.5
    server.child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]).pid
    threading.Thread(target=server.serve_forever).run()
