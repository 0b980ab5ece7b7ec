"""What a part tells of its trial."""

import collections
import math

# Of a fault, in the table.
FAULT_CHARACTERS_MAX = 60


class Row:
    """A line of the table: what was tried how often, what was found, the figure that was asked
    for, and what was wrong."""

    def __init__(self, name, tried, found, figure, faults):
        self.name, self.tried, self.found, self.figure = name, tried, found, figure
        self.faults = list(faults)

    @property
    def held(self):
        return not self.faults


class Faults(collections.abc.Iterable):
    """Counted by kind, with an example of each."""

    def __init__(self):
        self.counts, self.examples = collections.Counter(), {}

    def add(self, kind, example=""):
        self.counts[kind] += 1
        self.examples.setdefault(kind, str(example)[:600])

    def __iter__(self):
        return iter([f"{count} × {kind}: {self.examples[kind]}"
                     for kind, count in self.counts.most_common()])

    def __len__(self):
        return sum(self.counts.values())


def percentile(values, share):
    """The smallest value that `share` of all do not exceed."""
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]


def counted(counts):
    """`3 × 200, 1 × 400`."""
    return ", ".join(f"{count:,} × {what}" for what, count in sorted(counts.items(), key=str))


def table(rows):
    """In Markdown."""
    lines = ["| trial | tried | found | wanted | held |", "|---|---|---|---|---|"]
    for row in rows:
        held = "yes" if row.held else f"no: {row.faults[0][:FAULT_CHARACTERS_MAX]}"
        cells = (row.name, row.tried, row.found, row.figure, held)
        lines.append("| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines)
