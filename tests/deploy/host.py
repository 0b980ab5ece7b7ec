#!/usr/bin/env python3
"""Checks deploy/compose.yml, deploy/compose.gpu.yml and deploy/systemd/tessera.service against the
server, and by their own tools where those are installed.

    python3 tests/deploy/host.py TESSERA

TESSERA is the executable. Needs the packages of tests/deploy/kubernetes.txt.
"""

import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
UNIT = DEPLOY / "systemd/tessera.service"
COMPOSE = [DEPLOY / "compose.yml", DEPLOY / "compose.gpu.yml"]
# For the last errors of a drain (`CANCEL_MS` of src/http/server.rs), and to spare.
CANCEL_SECONDS = 2 + 5
# systemd's own measure, from 0 (safe) to 10.
EXPOSURE_MAX = 2.0


def variables(binary):
    """Those that `tessera serve` reads, by flag."""
    shown = subprocess.run([binary, "serve", "--help"], text=True, capture_output=True,
                           check=True).stdout
    found = dict(re.findall(r"(--[a-z-]+)(?:(?!\n +--).)*?\[env: (TESSERA_\w+)", shown, re.DOTALL))
    assert len(found) > 30, found
    return {*found.values(), "TESSERA_MODEL"}


def check_known(names, known, where):
    unknown = {name for name in names if name.startswith("TESSERA_")} - known
    assert not unknown, f"{where}: tessera serve reads no {unknown}"


def compose(binary):
    """The service is as closed as the page says, and what it sets is known to the server."""
    known = variables(binary)
    first, gpu = (yaml.safe_load(file.read_text())["services"] for file in COMPOSE)
    assert set(first) == set(gpu) == {"tessera"}, "a second file must add to the same service"
    service = first["tessera"]
    for one in (service, gpu["tessera"]):
        check_known(one["environment"], known, "compose")
    assert service["read_only"] and service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert [volume for volume in service["volumes"] if not volume.endswith(":ro")] == ["data:/data"]
    assert all(port.startswith("127.0.0.1:") for port in service["ports"]), "open to the network"
    assert service["healthcheck"]["test"] == ["CMD", "tessera", "healthcheck"]
    drain = int(service["environment"]["TESSERA_DRAIN_SECONDS"])
    assert int(service["stop_grace_period"].rstrip("s")) >= drain + CANCEL_SECONDS
    image = (ROOT / "Dockerfile").read_text()
    assert "VOLUME /data" in image and 'ENTRYPOINT ["tessera"]' in image
    for one, tag in ((service, "tessera"), (gpu["tessera"], "tessera:cuda")):
        assert one["image"] == tag and f"-t {tag} " in image, f"{tag} is not built"
    by_client(["docker", "compose"])


def by_client(command):
    there = shutil.which(command[0]) and subprocess.run(
        [*command, "version"], capture_output=True).returncode == 0
    if not there:
        print("skipped: `docker compose config`, there is no such client")
        return
    for files in (COMPOSE[:1], COMPOSE):
        flags = [flag for file in files for flag in ("-f", file)]
        subprocess.run([*command, *flags, "config", "--quiet"], check=True)


def settings(text):
    """Keys of a unit; those that may be there several times have all of their values."""
    found = {}
    for line in text.splitlines():
        if "=" in line and not line.startswith("#"):
            key, _, value = line.partition("=")
            found.setdefault(key, []).append(value)
    return found


def unit(binary):
    """systemd takes the unit, finds it closed, and it leaves the server the time to drain."""
    told = settings(UNIT.read_text())
    pairs = [pair.partition("=") for line in told["Environment"] for pair in line.split()]
    environment = {name: value for name, _, value in pairs}
    check_known(environment, variables(binary), "systemd")
    assert told["ExecStart"] == ["/usr/bin/tessera serve"]
    cache = f"/var/cache/{told['CacheDirectory'][0]}/"
    for name in ("HF_HOME", "TESSERA_KERNEL_CACHE"):
        assert environment.get(name, "").startswith(cache), f"{name} is no cache"
    drain = int(environment["TESSERA_DRAIN_SECONDS"])
    assert int(told["TimeoutStopSec"][0]) >= drain + CANCEL_SECONDS, "too short a time to drain"
    if shutil.which("systemd-analyze") is None:
        print("skipped: `systemd-analyze`, there is no systemd")
        return
    with tempfile.TemporaryDirectory() as folder:
        # systemd looks for the executable.
        copy = Path(folder) / UNIT.name
        copy.write_text(UNIT.read_text().replace("/usr/bin/tessera", str(Path(binary).resolve())))
        verified = subprocess.run(["systemd-analyze", "verify", copy], text=True,
                                  capture_output=True)
        said = verified.stdout + verified.stderr
        # It reads all units that the machine has, too.
        assert verified.returncode == 0 and UNIT.name not in said, said
        graded = subprocess.run(["systemd-analyze", "security", "--offline=yes", copy], text=True,
                                capture_output=True).stdout
    exposure = float(re.search(r"exposure level for \S+: ([0-9.]+)", graded)[1])
    assert exposure <= EXPOSURE_MAX, f"an exposure of {exposure}"
    print(f"systemd finds an exposure of {exposure}")


def main():
    if len(sys.argv) != 2:
        raise SystemExit(f"usage: {sys.argv[0]} PATH_TO_TESSERA")
    failed = 0
    for check in (compose, unit):
        try:
            check(sys.argv[1])
        except AssertionError as error:
            failed += 1
            print(f"failed: {check.__name__}: {error}")
    print(f"host: {2 - failed} passed, {failed} failed")
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
