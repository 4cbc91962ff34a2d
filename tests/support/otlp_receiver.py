"""An OTLP receiver on 127.0.0.1, as a collector is: protobuf over HTTP, of which it keeps spans.

with OTLPReceiver() as receiver:
    exporter = OTLPSpanExporter(f"{receiver.url}/v1/traces")
    ...
    receiver.spans  # by name, attributes, parent and links
    receiver.tree()  # as indented lines
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)


@dataclass(frozen=True)
class Received:
    """A span as it came over the wire."""

    name: str
    id: str
    parent_id: str
    began_ns: int
    ended_ns: int
    status: int
    attributes: dict
    links: list

    def __getitem__(self, name):
        return self.attributes[name]


class OTLPReceiver:
    """Collects the spans that are sent to it, and has the headers of the last request."""

    def __init__(self):
        self.spans: list[Received] = []
        self.headers: dict[str, str] = {}
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                receiver.headers = {name.lower(): each for name, each in self.headers.items()}
                body = self.rfile.read(int(self.headers["content-length"]))
                if self.path == "/v1/traces":
                    receiver.take(ExportTraceServiceRequest.FromString(body))
                self.send_response(200)
                self.send_header("content-type", "application/x-protobuf")
                self.end_headers()
                self.wfile.write(ExportTraceServiceResponse().SerializeToString())

            def log_message(self, *args):
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self):
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()
        return self

    def __exit__(self, *error):
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def take(self, request):
        scopes = [scope for each in request.resource_spans for scope in each.scope_spans]
        self.spans += [_received(span) for scope in scopes for span in scope.spans]

    def tree(self):
        """The names of the spans, in the order of their beginnings, indented by their depth."""
        lines = []

        def add(parent_id, depth):
            children = [span for span in self.spans if span.parent_id == parent_id]
            for span in sorted(children, key=lambda each: each.began_ns):
                lines.append("  " * depth + span.name)
                add(span.id, depth + 1)

        add("", 0)
        return lines

    def named(self, name):
        """The spans of a name, in the order of their beginnings."""
        found = [span for span in self.spans if span.name == name]
        return sorted(found, key=lambda each: each.began_ns)


def _received(span):
    return Received(
        span.name,
        span.span_id.hex(),
        span.parent_span_id.hex(),
        span.start_time_unix_nano,
        span.end_time_unix_nano,
        span.status.code,
        _plain(span.attributes),
        [(link.span_id.hex(), _plain(link.attributes)) for link in span.links],
    )


def _plain(attributes):
    return {each.key: _value(each.value) for each in attributes}


def _value(value):
    kind = value.WhichOneof("value")
    found = getattr(value, kind)
    return [_value(each) for each in found.values] if kind == "array_value" else found
