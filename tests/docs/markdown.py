"""A page's fenced blocks, and what the comments before them say.

What a block is goes by the words after its fence:

    ```sh                   commands; all must end with status 0
    ```console              `$ command` lines, `> ` before further lines of one, and what it prints
    ```python               a program
    ```json POST /v1/path   a request to the page's server
    ```python train.py      a file (of any language) that later blocks of the page use
    ```output               what the block before it prints, or a request is answered; … stands
                            for anything
    ```json answer          what the request before it is answered: at least these keys
    ```text, ```toml        for people alone

and a comment right before it may hold

    <!-- not run: REASON -->                why it cannot be run where the tests are
    <!-- fails: STATUS -->                  commands end with this status, a request is answered it
    <!-- needs: MODULE; else: COMMAND -->   run only where Python has the module, else COMMAND is
"""

import re
from dataclasses import dataclass, field

# What a reader looks at; TOML must be some.
SHOWN = {"text", "output", "toml"}
RUN = {"sh", "console", "python"}
METHODS = {"GET", "POST", "DELETE", "HEAD", "OPTIONS"}


class PageError(Exception):
    """What is wrong with a page, and in which line."""

    def __init__(self, line, message):
        super().__init__(message)
        self.line = line


@dataclass
class Block:
    line: int
    language: str
    words: list
    text: str
    marks: dict = field(default_factory=dict)
    # The block that says what this one prints or is answered.
    output: "Block | None" = None

    def kind(self):
        """run, request, file, output or shown."""
        if self.words and self.words[0] in METHODS:
            if self.language != "json" or len(self.words) != 2:
                raise PageError(self.line, "a request is ```json METHOD /PATH")
            return "request"
        if self.language == "output" or self.words == ["answer"]:
            return "output"
        if len(self.words) == 1:
            return "file"
        if self.words:
            raise PageError(self.line, f"nobody knows what {' '.join(self.words)!r} asks for")
        if self.language in RUN:
            return "run"
        if self.language in SHOWN or "not run" in self.marks:
            return "shown"
        raise PageError(self.line, f"a block of {self.language or 'nothing'} is neither run nor a "
                        "file: name the file after the language, or say ```text")


def marks(comment):
    """`not run: x` and the like; a comment of other words is the writer's own."""
    found = re.match(r"(not run|fails|needs): (.*)", comment, re.DOTALL)
    if not found:
        return {}
    name, value = found[1], " ".join(found[2].split())
    if name == "needs":
        module, _, fallback = value.partition("; else: ")
        return {"needs": module, "else": fallback or None}
    return {name: value}


def blocks(text):
    """The blocks of a page in their order; an output belongs to the block before it."""
    found, comment, lines = [], "", enumerate(text.splitlines(), 1)
    for number, line in lines:
        fence = re.match(r"(\s*)(```+)(.*)$", line)
        if fence:
            block = Block(number, *info(fence[3]), body(lines, number, fence), marks(comment))
            attach(found, block)
            comment = ""
        elif line.startswith("<!--"):
            comment = line
            while "-->" not in comment:
                comment += "\n" + next(lines, (0, "-->"))[1]
            comment = comment.removeprefix("<!--").partition("-->")[0].strip()
        elif line.strip():
            comment = ""
    return found


def info(words):
    language, *rest = words.split() or [""]
    return language, rest


def body(lines, number, fence):
    held = []
    for _, line in lines:
        if line.strip() == fence[2]:
            return "\n".join(held) + "\n"
        held.append(line.removeprefix(fence[1]))
    raise PageError(number, "a fence that is never closed")


def attach(found, block):
    if block.kind() != "output":
        found.append(block)
        return
    if not found or found[-1].kind() not in ("run", "request") or found[-1].output:
        raise PageError(block.line, "an output that follows nothing that is run")
    if block.language == "json" and found[-1].kind() != "request":
        raise PageError(block.line, "an answer that follows no request")
    found[-1].output = block


def prose(text):
    """The page without its blocks, line by line, with line numbers."""
    inside = False
    for number, line in enumerate(text.splitlines(), 1):
        if line.lstrip().startswith("```"):
            inside = not inside
        elif not inside:
            yield number, line
