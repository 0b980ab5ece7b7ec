"""Bytes of right connections: HTTP/1 of several shapes, HTTP/2, and what begins a TLS session."""

import json
import ssl
import struct

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, PRIORITY, RST, SETTINGS, PUSH, PING, GOAWAY, WINDOW, CONTINUATION = range(10)
END_STREAM, END_HEADERS, ACK = 1, 4, 1
BODY = json.dumps({"prompt": "The fox", "max_tokens": 3, "temperature": 0}).encode()
STREAMED = json.dumps({"prompt": "a", "max_tokens": 5, "stream": True}).encode()


def head(method, path, *lines):
    return "\r\n".join([f"{method} {path} HTTP/1.1", "host: localhost", *lines, "", ""]).encode()


def post(body, *lines, path="/v1/completions"):
    return head("POST", path, "content-type: application/json", f"content-length: {len(body)}",
                *lines) + body


def chunked(body, size, trailer=b""):
    parts = [body[at:at + size] for at in range(0, len(body), size)]
    head_ = head("POST", "/v1/completions", "content-type: application/json",
                 "transfer-encoding: chunked")
    return head_ + b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts) \
        + b"0\r\n" + trailer + b"\r\n"


def frame(kind, flags, stream, payload=b""):
    return struct.pack(">I", len(payload))[1:] + bytes([kind, flags]) \
        + struct.pack(">I", stream) + payload


def literal(name, value):
    """A header without compression; both shorter than 127 bytes."""
    return b"\x00" + bytes([len(name)]) + name + bytes([len(value)]) + value


def headers(method, path, *more):
    pairs = [(b":method", method), (b":path", path), (b":scheme", b"http"),
             (b":authority", b"localhost"), *more]
    return b"".join(literal(name, value) for name, value in pairs)


def http2(*frames):
    return PREFACE + frame(SETTINGS, 0, 0) + b"".join(frames)


def http2_post(body, stream):
    block = headers(b"POST", b"/v1/completions", (b"content-type", b"application/json"),
                    (b"content-length", str(len(body)).encode()))
    return frame(HEADERS, END_HEADERS, stream, block) + frame(DATA, END_STREAM, stream, body)


def client_hello():
    """What a TLS client sends first."""
    context = ssl.create_default_context()
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    session = context.wrap_bio(incoming, outgoing, server_hostname="localhost")
    try:
        session.do_handshake()
    except ssl.SSLWantReadError:
        pass
    return outgoing.read()


HTTP1 = [
    head("GET", "/health"), head("GET", "/v1/models", "accept: */*", "connection: close"),
    head("GET", "/metrics") * 3, post(BODY), post(BODY) + post(STREAMED) + head("GET", "/health"),
    post(STREAMED), post(BODY, "expect: 100-continue"), chunked(BODY, 9), chunked(STREAMED, 1000),
    chunked(BODY, 3, b"x-trailer: a\r\n"), chunked(BODY, 20) + post(BODY),
    b"GET /health HTTP/1.0\r\n\r\n", post(BODY, "connection: keep-alive, x", "x: " + "y" * 3000),
    head("GET", "/" + "a" * 7000), head("OPTIONS", "*"), b"\r\n\r\n" + head("GET", "/live"),
    head("GET", "/health", *(f"x-{i}: y" for i in range(80))),
    post(b'{"messages":[{"role":"user","content":"hi"}],"max_tokens":4}',
         path="/v1/chat/completions")]
GET = frame(HEADERS, END_HEADERS | END_STREAM, 1, headers(b"GET", b"/health"))
HTTP2 = [
    http2(GET), http2(http2_post(BODY, 1)), http2(http2_post(STREAMED, 1), http2_post(BODY, 3)),
    http2(*(frame(PING, 0, 0, bytes(8)) for _ in range(20)), GET),
    http2(http2_post(STREAMED, 1), frame(RST, 0, 1, bytes(4)), http2_post(BODY, 3)),
    http2(frame(WINDOW, 0, 0, b"\x00\x0f\xff\xff"), frame(PRIORITY, 0, 1, bytes(5)), GET),
    http2(frame(SETTINGS, 0, 0, b"\x00\x04\x00\x00\x00\x00"), http2_post(STREAMED, 1)),
    http2(frame(HEADERS, END_STREAM, 1, headers(b"GET", b"/health")[:20]),
          frame(CONTINUATION, END_HEADERS, 1, headers(b"GET", b"/health")[20:])),
    http2(*(frame(HEADERS, END_HEADERS | END_STREAM, 2 * i + 1, headers(b"GET", b"/live"))
            + frame(RST, 0, 2 * i + 1, b"\x00\x00\x00\x08") for i in range(50))),
    http2(GET, frame(GOAWAY, 0, 0, bytes(8))), PREFACE]


def mutate(rng, seed):
    """Some bytes changed, lost, doubled or moved; now and then two connections in one."""
    text = bytearray(seed)
    for _ in range(rng.choice([0, 1, 1, 2, 3, 10])):
        at = rng.randrange(len(text) + 1)
        match rng.randrange(7):
            case 0:
                text[at:at + 1] = bytes([rng.randrange(256)])
            case 1:
                text[at:at] = rng.choice([
                    b"\r\n", b"\n", b"\r", b"\x00", b" ", b"\t", b":", b"\xff" * 3, b"\r\n\r\n",
                    b"0\r\n\r\n", b"x: y\r\n", b"a" * 70_000, b"content-length: 5\r\n", b"\x7f",
                    b"transfer-encoding: chunked\r\n", b"host: b\r\n", b"9" * 30, b"-", PREFACE,
                    b"transfer-encoding: chunked, identity\r\n",
                    b"content-length: 18446744073709551616\r\n"])
            case 2:
                del text[at:at + rng.randrange(1, 30)]
            case 3:
                end = min(len(text), at + rng.randrange(1, 200))
                text[at:at] = text[at:end]
            case 4:
                digits = [i for i, byte in enumerate(text) if 48 <= byte <= 57]
                if digits:
                    spot = rng.choice(digits)
                    text[spot:spot + 1] = rng.choice([b"0", b"9", b"f", b"99999999", b"+1", b"1 1"])
            case 5:
                del text[at:]
            case 6:
                if at < len(text):
                    text[at] ^= 1 << rng.randrange(8)
    return bytes(text)
