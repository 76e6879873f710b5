#!/usr/bin/env bash
# openai 3.57.0: the stream helper of the Responses API has no final response for a cut answer.
#
# Seen: an answer that reaches max_output_tokens ends with the event `response.incomplete`, which
# carries the whole response; `responses.create` returns the same answer without complaint when it
# is not streamed. `responses.stream(...)` passes the event on, yet `get_final_response()` then
# raises RuntimeError: it knows `response.completed` alone. Whoever streams with a token limit has
# to take the response from the event.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet "openai==3.57.0"
"$work/venv/bin/python" - <<'PY'
import json
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread

from openai import OpenAI

TEXT = {"type": "output_text", "text": "The Rhine", "annotations": []}
MESSAGE = {"id": "msg_1", "type": "message", "role": "assistant", "status": "incomplete"}
COMMON = {
    "id": "resp_1", "object": "response", "created_at": 1, "model": "m", "tools": [],
    "parallel_tool_calls": True, "tool_choice": "auto",
}
DONE = {
    **COMMON,
    "status": "incomplete",
    "incomplete_details": {"reason": "max_output_tokens"},
    "output": [{**MESSAGE, "content": [TEXT]}],
}
PLACE = {"item_id": "msg_1", "output_index": 0, "content_index": 0}
EVENTS = [
    {"type": "response.created", "response": {**COMMON, "status": "in_progress", "output": []}},
    {"type": "response.output_item.added", "output_index": 0,
     "item": {**MESSAGE, "status": "in_progress", "content": []}},
    {"type": "response.content_part.added", **PLACE, "part": {**TEXT, "text": ""}},
    {"type": "response.output_text.delta", **PLACE, "delta": "The Rhine", "logprobs": []},
    {"type": "response.output_text.done", **PLACE, "text": "The Rhine", "logprobs": []},
    {"type": "response.content_part.done", **PLACE, "part": TEXT},
    {"type": "response.output_item.done", "output_index": 0, "item": DONE["output"][0]},
    {"type": "response.incomplete", "response": DONE},
]


class Server(BaseHTTPRequestHandler):
    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
        lines = [
            f"event: {event['type']}\ndata: {json.dumps({**event, 'sequence_number': n})}\n\n"
            for n, event in enumerate(EVENTS)
        ]
        body = ("".join(lines) if asked.get("stream") else json.dumps(DONE)).encode()
        kind = "text/event-stream" if asked.get("stream") else "application/json"
        self.send_response(200)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


server = HTTPServer(("127.0.0.1", 0), Server)
Thread(target=server.serve_forever, daemon=True).start()
client = OpenAI(base_url=f"http://127.0.0.1:{server.server_port}/v1", api_key="none")
asked = {"model": "m", "input": "Name a river.", "max_output_tokens": 2}
whole = client.responses.create(**asked)
print(f"not streamed: {whole.status}, {whole.output_text!r}")
with client.responses.stream(**asked) as stream:
    last = list(stream)[-1]
    print(f"streamed, last event: {last.type}, {last.response.output_text!r}")
    try:
        said = stream.get_final_response().status
    except RuntimeError as error:
        said = f"RuntimeError: {error}"
print(f"get_final_response: {said}")
shown = (whole.output_text, last.type) == ("The Rhine", "response.incomplete")
raise SystemExit(not (shown and said.startswith("RuntimeError")))
PY
