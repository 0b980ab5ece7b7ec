"""Bodies that the server's own document of its API takes, and what makes wrong ones of them."""

import copy
import json
import sys

import serving  # noqa: F401  (it knows where tests/clients is)
from fuzz_requests import draw

# How often a field is there that need not be; of the many at the top, few at once.
FIELD_SHARE = 0.25
TOP_SHARE = 0.15
DEPTH_MAX = 6
TOKENS_MAX = 12
# Beyond the largest body that a server of a small model takes.
HUGE_TEXT = 40 << 20
TEXTS = ("", " ", "a", "The fox", "é☃\U0001f98a", "\u202eabc", "\u0000", "a\u0000b", "\x1b[31m",
         "\ufeff", "\ud800", "x" * 5000, "e\u0301" * 300, "\r\n\r\n", "../../etc/passwd", "NaN",
         "<|im_start|>", "</s>", "{{ 1 }}", "%s%n", "null", "-1", "a" * 300 + "\u0000", "\u2028")
NUMBERS = (0, 1, -1, 2, 255, 256, 2**31 - 1, 2**31, 2**32, 2**53 + 1, 2**63, 2**64, -2**63,
           -2**63 - 1, 10**40, 0.5, -0.0, 1e-320, 1e308, 1e-7, 8.0, 3.9999999999999996)
OTHERS = (None, True, False, [], {}, [[]], [None], {"": None}, {"a": {"b": [1]}}, [1, "a", None])
# Texts of JSON that no value of Python is written as.
RAW = ("NaN", "Infinity", "-Infinity", "1e400", "-1e999", "1E+2", "00", "01", "1.", ".5", "+1",
       "0x10", "'a'", "undefined", "nul", "-", "\"\\ud800\"", "\"\\u0000\"", "\"\\x\"", "1" * 5000,
       "0." + "1" * 5000, "\"\t\"", "[1,]", "{\"a\":1,}", "/**/1", "[" * 200 + "]" * 200,
       "[" * 100_000, "{\"a\":" * 50_000)
# Bodies that are nested more deeply than Python's functions may be by themselves.
sys.setrecursionlimit(5_000)


def some_value(rng):
    return rng.choice(rng.choice([TEXTS, NUMBERS, OTHERS]))


class Schemas:
    """Draws values of the schemas in the document."""

    def __init__(self, document, rng):
        self.all, self.rng = document["components"]["schemas"], rng

    def draw(self, schema, depth=0):
        rng = self.rng
        if "$ref" in schema:
            return self.draw(self.all[schema["$ref"].rsplit("/", 1)[1]], depth)
        for key in ("anyOf", "oneOf"):
            if key in schema:
                branch = rng.choice(schema[key])
                if "properties" in schema:
                    rest = {name: part for name, part in schema.items() if name != key}
                    branch = rest | {"required": branch.get("required", [])}
                return self.draw(branch, depth)
        if "const" in schema:
            return schema["const"]
        if "enum" in schema:
            return rng.choice(schema["enum"])
        kinds = schema.get("type", "object" if "properties" in schema else "string")
        kind = rng.choice(kinds) if isinstance(kinds, list) else kinds
        return getattr(self, "a_" + kind)(schema, depth)

    def a_null(self, _schema, _depth):
        return None

    def a_boolean(self, _schema, _depth):
        return self.rng.random() < 0.5

    def a_number(self, schema, _depth):
        return self.rng.uniform(schema.get("minimum", -2), schema.get("maximum", 2))

    def a_integer(self, schema, _depth):
        low = schema.get("minimum", -2)
        return self.rng.randint(low, max(low, min(schema.get("maximum", 40), low + 40)))

    def a_string(self, schema, _depth):
        fitting = [text for text in TEXTS
                   if schema.get("minLength", 0) <= len(text) <= schema.get("maxLength", 9999)]
        return self.rng.choice(fitting or ["x" * schema["minLength"]])

    def a_array(self, schema, depth):
        low = schema.get("minItems", 0)
        count = self.rng.randint(low, max(low, min(schema.get("maxItems", 3), low + 2)))
        items = schema.get("items", {"type": "string"})
        return [self.draw(items, depth + 1) for _ in range(0 if depth > DEPTH_MAX else count)]

    def a_object(self, schema, depth):
        needed = schema.get("required", [])
        share = FIELD_SHARE if depth < DEPTH_MAX else 0
        return {name: self.draw(part, depth + 1)
                for name, part in schema.get("properties", {}).items()
                if name in needed or self.rng.random() < share * (TOP_SHARE if depth == 0 else 1)}


class Bodies:
    """Draws a path and a body that is meant to be taken, of every POST that has one."""

    def __init__(self, document, names, rng):
        self.schemas, self.names, self.rng = Schemas(document, rng), names, rng
        self.paths = {path: of["post"]["requestBody"]["content"]["application/json"]["schema"]
                      for path, of in document["paths"].items()
                      if "requestBody" in of.get("post", {})}

    def draw(self):
        rng = self.rng
        if rng.random() < 0.4:
            path, body = draw(rng)
            path, body = "/v1" + path, copy.deepcopy(body)
        else:
            path = rng.choice(list(self.paths))
            body = self.schemas.draw(self.paths[path])
            self.help(path, body)
        for field in ("max_tokens", "max_completion_tokens", "max_output_tokens"):
            if isinstance(body.get(field), int):
                body[field] = min(body[field], TOKENS_MAX)
        return path, body

    def help(self, path, body):
        """A drawn text is no model and no chat: most bodies should get beyond that."""
        rng = self.rng
        if "model" in body or rng.random() < 0.7:
            body["model"] = rng.choice(self.names)
        if "messages" in body and rng.random() < 0.7:
            turn = {"role": "user", "content": rng.choice(["hi", [{"type": "text", "text": "a"}]])}
            body["messages"] = [turn] * rng.choice([1, 1, 3])
        if "lora_path" in body and rng.random() < 0.8:
            body["lora_path"] = rng.choice(self.names)
        if "lora_name" in body:
            # What is unloaded must not be what all the other requests ask.
            own = [] if "unload" in path else self.names
            body["lora_name"] = rng.choice([f"x{rng.randint(0, 9)}", *own])
        if path.endswith("load_lora_adapter") and rng.random() < 0.5:
            body["load_inplace"] = True


def places(value, found=None):
    """Every list and object within, with each key or index."""
    found = [] if found is None else found
    if isinstance(value, (dict, list)):
        for key in value if isinstance(value, dict) else range(len(value)):
            found.append((value, key))
            places(value[key], found)
    return found


def change_a_value(rng, body):
    holder, key = rng.choice(places(body))
    old = holder[key]
    holder[key] = rng.choice([
        lambda: some_value(rng), lambda: [old], lambda: {"a": old}, lambda: [old] * 200,
        lambda: str(old), lambda: {str(i): old for i in range(50)}, lambda: some_value(rng),
        lambda: old * 30 if isinstance(old, (str, list)) and len(old) < 1000 else -1])()


def nest(rng, body):
    holder, key = rng.choice(places(body))
    for _ in range(rng.choice([3, 60, 126, 127, 128, 300])):
        holder[key] = rng.choice([[holder[key]], {"a": holder[key]}])


def drop_a_key(rng, body):
    holder, key = rng.choice(places(body))
    del holder[key]


def rename_a_key(rng, body):
    named = [(holder, key) for holder, key in places(body) if isinstance(holder, dict)]
    holder, key = rng.choice(named)
    new = rng.choice([key.upper(), key + " ", "", key + "\u0000", key[:-1], "ｍodel", "__proto__"])
    holder[new] = holder.pop(key)


def move_a_value(rng, body):
    (one, at), (other, to) = rng.choice(places(body)), rng.choice(places(body))
    one[at] = copy.deepcopy(other[to])


CHANGES = (change_a_value, change_a_value, change_a_value, nest, drop_a_key, rename_a_key,
           move_a_value)


def written(body):
    """As JSON of bytes; half a pair of surrogates as an escape."""
    return json.dumps(body).encode()


def with_raw_value(rng, text):
    """Some value of the text, one of those that Python does not write."""
    spots = [i for i, byte in enumerate(text) if byte in b":,["]
    at = rng.choice(spots) + 1 if spots else 0
    end = next((i for i in range(at, len(text)) if text[i] in b",]}"), len(text))
    return text[:at] + rng.choice(RAW).encode() + text[end:]


def with_broken_bytes(rng, text):
    text = bytearray(text)
    for _ in range(rng.choice([1, 1, 2, 8])):
        at = rng.randrange(len(text) + 1)
        match rng.randrange(4):
            case 0:
                text[at:at + 1] = bytes([rng.randrange(256)])
            case 1:
                text[at:at] = rng.choice([b"\xff", b"\xed\xa0\x80", b"\x00", b"\xc0\x80", b"\"",
                                          b"\\", b"{", b"]", b",", b"\xef\xbb\xbf", b"\xf4\x90"])
            case 2:
                del text[at:at + rng.randrange(1, 9)]
            case 3:
                text[at:at] = text[at:at + rng.randrange(1, 60)]
    return bytes(text)


def with_ends(rng, text):
    return rng.choice([
        lambda: text[:rng.randrange(len(text) + 1)], lambda: text + text, lambda: b"",
        lambda: text + b" " * 100_000, lambda: b"\xef\xbb\xbf" + text, lambda: b"[" + text + b"]",
        lambda: text + b"\x00", lambda: b"\n" * 1000 + text, lambda: text.decode().encode("utf-16"),
        lambda: b"[" * 1_000_000, lambda: b"{\"a\":" * 200_000,
        lambda: text[:1] + b"\"x\":\"" + b"y" * 300_000 + b"\"," + text[1:],
        lambda: text[:1] + text[1:-1] + b"," + text[1:]])()


TEXT_CHANGES = (with_raw_value, with_broken_bytes, with_ends)
