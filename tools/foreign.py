"""The architecture that a check is for: this machine's, or another, emulated.

What another takes, for Debian: `rustup target add aarch64-unknown-linux-gnu`, and
  apt-get install --no-install-recommends gcc-aarch64-linux-gnu libc6-dev-arm64-cross \\
    qemu-user-static
A program of the other architecture is handed to qemu by the kernel (binfmt_misc), inside of chroots
and containers too. Where that is not so yet, it is registered, and stays until the machine ends.
"""

import json
import os
import struct

from checks import ROOT, must, output, read

# What Debian calls an architecture, what Rust, Python and GNU call it, and its number in ELF files.
MACHINES = {"amd64": ("x86_64", 62), "arm64": ("aarch64", 183)}
BINFMT = "/proc/sys/fs/binfmt_misc"


def native():
    """This machine's architecture."""
    return output("dpkg", "--print-architecture")


class Architecture:
    """What a check is to be done for."""

    def __init__(self, name):
        self.name = name
        self.is_native = name == native()
        self.machine, self.number = MACHINES[name]
        self.triple = f"{self.machine}-unknown-linux-gnu"
        self.tools = f"{self.machine}-linux-gnu-"

    def section(self, kind):
        """The name of a section of the results."""
        return kind if self.is_native else f"{kind} for linux/{self.name}"

    def took(self, seconds):
        """A time, for the result: of an emulated processor it says nothing."""
        return f"after {seconds:.1f} s" if self.is_native else "untimed: emulated"

    def needed(self):
        """Commands that must be there beside those for this machine's own architecture."""
        return [] if self.is_native else [f"{self.tools}gcc", f"qemu-{self.machine}-static"]

    def versions(self):
        """What a result was found with, beside what a native one is found with."""
        if self.is_native:
            return {}
        compiler = output(f"{self.tools}gcc", "-dumpfullversion")
        qemu = output(f"qemu-{self.machine}-static", "--version").split()[2]
        return {f"{self.tools}gcc": compiler, "qemu-user": qemu}

    def cargo(self):
        """Options and variables with which cargo, and what calls it, compiles for it. The C
        compiler for dependencies in C is found by its name."""
        if self.is_native:
            return [], None
        libraries = output("rustc", "--target", self.triple, "--print", "target-libdir")
        must(os.path.isdir(libraries), f"the target is there: rustup target add {self.triple}")
        linker = f"CARGO_TARGET_{self.triple.upper().replace('-', '_')}_LINKER"
        return ["--target", self.triple], {**os.environ, linker: f"{self.tools}gcc"}

    def check_binary(self, path):
        """A program is one of this architecture."""
        with open(path, "rb") as file:
            head = file.read(20)
        must(head[:4] == b"\x7fELF", f"{path} is a program of Linux")
        (number,) = struct.unpack_from("<H", head, 18)
        expected = f"{path} is for {self.machine}, number {self.number} in ELF files"
        must(number == self.number, f"{expected}: its number is {number}")

    def see_that_it_runs(self):
        """Programs of this architecture run here, within another root too."""
        if self.is_native:
            return
        if not os.path.exists(f"{BINFMT}/register"):
            output("mount", "-t", "binfmt_misc", "binfmt_misc", BINFMT)
        entry = f"{BINFMT}/qemu-{self.machine}"
        if not os.path.exists(entry):
            # As the package of qemu has it for systemd.
            setting = read(f"/usr/lib/binfmt.d/qemu-{self.machine}.conf").strip()
            with open(f"{BINFMT}/register", "w") as file:
                file.write(setting)
        lines = read(entry).splitlines()
        must("enabled" in lines, f"{entry} is enabled: {lines}")
        flags = next(line.split(":")[1] for line in lines if line.startswith("flags:"))
        must("F" in flags, f"{entry} has the flag F, so that other roots need no qemu: {flags}")


def build(architecture, to):
    """Compiles the server for another architecture into the file `to`, as the image has it."""
    options, variables = architecture.cargo()
    command = ["cargo", "build", "--release", "--locked", "--bin", "tessera", *options]
    output(*command, cwd=ROOT, env=variables)
    about = json.loads(output("cargo", "metadata", "--format-version=1", "--no-deps", cwd=ROOT))
    built = os.path.join(about["target_directory"], architecture.triple, "release", "tessera")
    output(f"{architecture.tools}strip", "-o", to, built)
