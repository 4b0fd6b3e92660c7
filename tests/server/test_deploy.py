"""The files of deploy/ agree with the command: their options exist, and their probes are paths that need no key."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from puna.server.guard.security import OPEN_PATHS
from puna.server.metrics import ROWS
from tests.cli.test_cli import run

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
FILES = sorted(path for path in DEPLOY.iterdir() if path.is_file())


def text_of(name: str) -> str:
    return (DEPLOY / name).read_text()


def test_the_documents_name_every_file():
    page = (ROOT / "docs" / "deploy.md").read_text()
    assert len(FILES) == 5 and all(path.name in page or path.stem in page for path in FILES)


def test_every_option_exists():
    options = set(re.findall(r"--[a-z-]+", run("serve", "--help").stdout))
    used = set()
    for line in "\n".join(path.read_text() for path in FILES).splitlines():
        if "apt-get" not in line and "pip " not in line and "docker " not in line and "HEALTHCHECK" not in line:
            used |= set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", line))
    used -= {"--uid", "--no-create-home", "--from"}  # of useradd and COPY
    assert {"--api-key-file", "--cache-dir", "--replica", "--metrics-alias"} <= used <= options, used - options


def test_probes_read_paths_that_need_no_key():
    paths = set(re.findall(r"(/health[a-z/]*)", "".join(path.read_text() for path in FILES)))
    assert paths and paths <= OPEN_PATHS


def test_the_gauges_of_schedulers_exist():
    names = set(re.findall(r"puna:(\w+)", text_of("kubernetes.yaml") + (ROOT / "docs" / "deploy.md").read_text()))
    gauges = {"num_requests_waiting", "num_requests_running", "kv_cache_usage_perc", "lora_requests_info"}
    assert gauges <= names <= ROWS.keys() and all(ROWS[name].kind == "gauge" for name in names)


def test_servers_get_more_time_to_stop_than_they_take():
    seconds = float(re.search(r"--drain-seconds X.*?\[default: ([0-9.]+)", run("serve", "--help").stdout, re.S)[1])
    for name, pattern in (
        ("compose.yaml", r"stop_grace_period: (\d+)s"),
        ("puna.service", r"TimeoutStopSec=(\d+)"),
        ("kubernetes.yaml", r"terminationGracePeriodSeconds: (\d+)"),
    ):
        assert int(re.search(pattern, text_of(name))[1]) > seconds + 5


def test_yaml_files_can_be_read():
    yaml = pytest.importorskip("yaml")
    services = yaml.safe_load(text_of("compose.yaml"))["services"]
    names = [name for name in services if name != "haproxy"]
    assert names == re.findall(r"^    server (\w+) \1:8000", text_of("haproxy.cfg"), re.M)
    for name in names:
        assert (
            services[name]["read_only"] and services[name]["cap_drop"] == ["ALL"] and name in services[name]["command"]
        )
    kinds = [document["kind"] for document in yaml.safe_load_all(text_of("kubernetes.yaml"))]
    assert kinds == ["Secret", "Deployment", "Service"]


def test_the_image_does_not_run_as_root():
    lines = text_of("Dockerfile").splitlines()
    assert "USER 10001" in lines and lines.index("USER 10001") < len(lines) - 1
    assert any(line.startswith("HEALTHCHECK") for line in lines) and "torch" not in "".join(lines[4:])


def test_haproxy_accepts_its_file():
    program = shutil.which("haproxy") or shutil.which("haproxy", path="/usr/sbin")
    if program is None:
        pytest.skip("haproxy is not installed")
    command = [program, "-c", "-f", str(DEPLOY / "haproxy.cfg")]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert "log format ignored" not in result.stderr  # the access log has a destination
