"""What a page names is there: links and their anchors, files, flags and metrics."""

import re
import subprocess

from markdown import PageError, prose

FILES = (".rs", ".cu", ".cuh", ".h", ".cpp", ".md", ".py", ".toml")
FOLDERS = ("src/", "tests/", "kernels/", "docs/", "demo/", "deploy/", "tools/", "benches/", ".ci/")
COMMANDS = ("serve", "inspect", "synth model", "synth adapter", "bench", "load", "healthcheck",
            "chat", "generate", "batch", "doctor", "completions", "man")
METRIC = re.compile(r"(?:vllm|tessera):[a-z0-9_]+")
LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)|!\[[^\]]*\]\(([^)\s]+)\)")
FLAG = re.compile(r"(?<![\w-])--[a-z][a-z0-9-]*")
# The first column of these pages' tables may have what other servers call it.
FOREIGN_PAGES = ("migrating.md", "configuration.md")
# cargo's, and guidellm's.
OTHERS = {"--target", "--time", "--features", "--release", "--backend"}


def anchors(text):
    """Where a page can be linked to, as GitHub names its headings."""
    found = []
    for _, line in prose(text):
        heading = re.match(r"#+ (.*)", line)
        if heading:
            words = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading[1]).strip().lower()
            slug = re.sub(r"[^\w\- ]", "", words).replace(" ", "-")
            repeats = sum(known == slug or re.fullmatch(re.escape(slug) + r"-\d+", known)
                          is not None for known in found)
            found.append(f"{slug}-{repeats}" if repeats else slug)
    return found


def spans(line):
    return line.split("`")[1::2]


def is_path(span, made):
    """A file's or folder's name, unless a part of it is to be filled in (`src/adapter/NAME.rs`) or
    the page itself has the reader write it."""
    is_file = span.endswith(FILES) and not span.startswith(".")
    is_plain = re.fullmatch(r"[\w./-]+", span, re.ASCII) is not None
    is_blank = any(part.split(".")[0] == "NAME" for part in span.split("/"))
    return (is_file or span.startswith(FOLDERS)) and is_plain and not is_blank \
        and span.removeprefix("./") not in made


class Names:
    """All that there is to name."""

    def __init__(self, root, binary):
        self.root = root
        asked = [[binary, *command.split(), "--help"] for command in COMMANDS]
        helps = [subprocess.run(one, capture_output=True, text=True, check=False).stdout
                 for one in asked]
        scripts = [path.read_text() for folder in ("tests", "tools", "demo")
                   for path in (root / folder).rglob("*.py")]
        taken = re.findall(r'add_argument\(\s*"(--[a-z-]+)"', "".join(scripts))
        self.flags = {*FLAG.findall("".join(helps)), *taken, *OTHERS}
        self.metrics = set(METRIC.findall((root / "docs/metrics.md").read_text()))

    def check(self, page, text, blocks):
        """The names of a page that lead nowhere, as PageErrors."""
        made = {block.words[0] for block in blocks if block.kind() == "file"}
        errors = []
        for number, line in prose(text):
            for found in LINK.findall(line):
                errors += self.link(number, page, text, found[0] or found[1])
            for span in spans(line):
                if is_path(span, made) and not (self.root / span).exists():
                    errors.append(PageError(number, f"no file {span}"))
                if METRIC.fullmatch(span) and not self.is_metric(span):
                    errors.append(PageError(number, f"no metric {span}"))
            if page.name in FOREIGN_PAGES and line.startswith("|"):
                line = line.split("|", 2)[2]
            errors += self.unknown_flags(number, line)
        return errors

    def unknown_flags(self, number, line):
        ours = [span for span in spans(line) if span.startswith(("--", "tessera "))]
        named = [flag for span in ours for flag in FLAG.findall(span)]
        return [PageError(number, f"no flag {flag}") for flag in named if flag not in self.flags]

    def is_metric(self, span):
        """A whole name, the part of a histogram, or the beginning of a family's names."""
        whole = re.sub(r"_(bucket|sum|count)$", "", span)
        is_family = span.endswith("_") and any(name.startswith(span) for name in self.metrics)
        return span in self.metrics or whole in self.metrics or is_family

    def link(self, number, page, text, target):
        if re.match(r"[a-z]+:", target):
            return []
        path, _, anchor = target.partition("#")
        file = page.parent / path if path else page
        if not file.exists():
            return [PageError(number, f"a link to {target}, which is not there")]
        if anchor and anchor not in anchors(file.read_text() if path else text):
            return [PageError(number, f"a link to {target}: no such heading")]
        return []
