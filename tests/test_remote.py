"""`labkit tunnel` and `labkit copy-back`: an ssh that forwards and runs commands on this machine stands for another."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_server import SMALL, live

from labkit.errors import LabError
from labkit.evidence import Pack, read_json, read_manifest
from labkit.remote.copy_back import copy_back
from labkit.remote.host import Host
from labkit.remote.tunnel import open_tunnel, tunnel_command
from labkit.serving.ports import claim_port, free_port, port_open

# What the tests need of ssh: -L forwards a port, words after the host are a command.
SSH = """#!{python}
import os, socket, sys, threading
words, options = sys.argv[1:], {{}}
while words[0].startswith("-"):
    flag = words.pop(0)
    if flag != "-N":
        options[flag] = words.pop(0)
host = words.pop(0)
open({log!r}, "a").write(host + " " + str(options.get("-p")) + "\\n")
if host.endswith("nowhere"):
    sys.exit("ssh: Could not resolve hostname nowhere")
if words:
    os.execvp("sh", ["sh", "-c", " ".join(words)])
_, port, to, to_port = options["-L"].split(":")
def pump(one, other):
    while part := one.recv(65536):
        other.sendall(part)
    other.shutdown(socket.SHUT_WR)
listener = socket.create_server(("127.0.0.1", int(port)))
while True:
    here, there = listener.accept()[0], socket.create_connection((to, int(to_port)))
    for pair in ((here, there), (there, here)):
        threading.Thread(target=pump, args=pair, daemon=True).start()
"""
rsync = pytest.mark.skipif(not shutil.which("rsync"), reason="no rsync here: apt-get install rsync")


@pytest.fixture
def ssh(tmp_path, monkeypatch):
    """The stand-in on the PATH; returns the file with one line for each use of it."""
    log, file = tmp_path / "ssh.log", tmp_path / "bin" / "ssh"
    file.parent.mkdir()
    file.write_text(SSH.format(python=sys.executable, log=str(log)))
    file.chmod(0o755)
    monkeypatch.setenv("PATH", f"{file.parent}:{os.environ['PATH']}")
    return log


def labkit(*words: object, **how) -> subprocess.Popen:
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen([sys.executable, "-m", "labkit.cli", *map(str, words)], **pipes | how)


# Tunnel


def test_the_command_binds_loopback_on_both_sides():
    command = " ".join(tunnel_command(Host("ann@gpu.example.org", 2222, "key"), 8001, 8000))
    assert command == (
        "ssh -N -o ExitOnForwardFailure=yes -o ServerAliveInterval=15 -o ServerAliveCountMax=3 -p 2222 -i key"
        " -L 127.0.0.1:8001:127.0.0.1:8000 ann@gpu.example.org"
    )


@pytest.mark.parametrize("name", ["-oProxyCommand=touch", "ann@-x", "a b", "", "ann@host;id", "x@y@z"])
def test_a_name_that_ssh_would_take_for_something_else_is_refused(name):
    with pytest.raises(LabError, match="is not a machine"):
        Host(name)


def test_the_smoke_test_runs_through_the_tunnel_which_stays_until_ctrl_c(ssh, tiny_model, tmp_path):
    port = free_port()
    with live(tiny_model, SMALL) as url:
        words = (
            "tunnel",
            "ann@gpu",
            "--port",
            port,
            "--remote-port",
            url.rpartition(":")[2],
            "--out",
            tmp_path / "pack",
        )
        process = labkit(*words)
        said = ""
        for line in process.stdout:
            said += line
            if line.startswith("open: "):
                break
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)
    assert process.returncode == 0, said
    assert said.startswith("ssh -N ")
    proof = read_json(tmp_path / "pack" / "api_smoke_test.json")
    assert (proof["base_url"], proof["has_choices"]) == (f"http://127.0.0.1:{port}", True)
    assert not port_open("127.0.0.1", port)
    assert ssh.read_text() == "ann@gpu None\n"


def test_a_tunnel_that_does_not_open_says_why(ssh):
    port = free_port()
    process = labkit("tunnel", "ann@nowhere", "--port", port)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 2
    assert "Could not resolve hostname" in said
    assert "error: ssh ended with code 1" in said
    with claim_port("127.0.0.1", port), pytest.raises(LabError, match="already in use"):
        open_tunnel(["ssh"], port).__enter__()


# Copy back


@pytest.fixture
def pack(tmp_path):
    made = Pack(tmp_path / "there" / "evidence" / "rented_gpu", "rented_gpu")
    made.write_text("first_run.md", "- Command: labkit chat\n", "13.2")
    made.write_text("openllm_gpu_training_run/sample.txt", "a sample\n", "13.2")
    made.path("report.html").write_text("<p>")
    return made


@rsync
def test_a_pack_comes_home_over_ssh_and_every_file_is_checked(ssh, pack, tmp_path):
    home = tmp_path / "home" / "rented_gpu"
    copied = copy_back(f"ann@gpu:{pack.folder}/", home, port=2200)
    assert (copied.files, copied.route, copied.unrecorded) == (2, "rented_gpu", ("report.html",))
    assert read_manifest(home) == read_manifest(pack.folder)
    assert (home / "openllm_gpu_training_run" / "sample.txt").read_text() == "a sample\n"
    assert [path.name for path in home.parent.iterdir()] == ["rented_gpu"]
    assert ssh.read_text() == "gpu 2200\n"  # rsync names the user with -l


@rsync
@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (
            lambda pack: pack.path("first_run.md").write_text("- Command: labkit CHAT\n"),
            "first_run.md (another content)",
        ),
        (lambda pack: pack.path("first_run.md").write_text("short"), "first_run.md (5 bytes, not 23)"),
        (lambda pack: pack.path("first_run.md").unlink(), "first_run.md (missing)"),
        (lambda pack: _name(pack, "../escaped.md"), "leads out of the pack"),
        (lambda pack: pack.path("manifest.json").unlink(), "manifest.json is missing"),
        (lambda pack: _link(pack), "first_run.md (missing)"),
    ],
)
def test_a_pack_that_is_not_what_its_manifest_says_does_not_arrive(pack, tmp_path, spoil, said):
    spoil(pack)
    home = tmp_path / "home" / "rented_gpu"
    with pytest.raises(LabError) as caught:
        copy_back(str(pack.folder), home)
    assert said in caught.value.what
    assert not home.exists()


def _name(pack: Pack, name: str) -> None:
    manifest = read_manifest(pack.folder)
    manifest["files"][name] = manifest["files"]["first_run.md"]
    pack.path("manifest.json").write_text(json.dumps(manifest))


def _link(pack: Pack) -> None:
    """A link is not brought home: it would point to a file of this machine."""
    pack.path("first_run.md").unlink()
    pack.path("first_run.md").symlink_to("/etc/hostname")


@rsync
def test_what_is_here_is_replaced_on_demand_only_and_only_by_a_whole_pack(pack, tmp_path):
    home = tmp_path / "home" / "rented_gpu"
    copy_back(str(pack.folder), home)
    pack.write_text("first_run.md", "- Command: another\n", "13.2")
    with pytest.raises(LabError, match="is there already"):
        copy_back(str(pack.folder), home)
    pack.path("openllm_gpu_training_run/sample.txt").write_text("changed\n")
    with pytest.raises(LabError, match="1 of 2 files are not"):
        copy_back(str(pack.folder), home, replace=True)
    assert (home / "first_run.md").read_text() == "- Command: labkit chat\n"
    pack.write_text("openllm_gpu_training_run/sample.txt", "changed\n", "13.2")
    copy_back(str(pack.folder), home, replace=True)
    assert (home / "first_run.md").read_text() == "- Command: another\n"


@rsync
def test_the_command_says_what_came_and_what_is_next(pack, tmp_path):
    process = labkit("copy-back", pack.folder, "--to", tmp_path / "home")
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 0, said
    assert "2 files, 32 bytes, each as the manifest of rented_gpu says" in said
    assert "not in the manifest, so nothing vouches for them: report.html" in said


def test_a_source_that_is_none_is_told(tmp_path):
    with pytest.raises(LabError, match="there is no folder nothing"):
        copy_back(str(tmp_path / "nothing"), tmp_path / "home")
    with pytest.raises(LabError, match="is not a machine"):
        copy_back("-oProxyCommand=x:evidence", tmp_path / "home")


def test_scp_does_it_where_rsync_is_missing(pack, tmp_path, monkeypatch):
    """scp between two folders of one machine needs no ssh."""
    scp = shutil.which("scp")
    if not scp:
        pytest.skip("no scp here: apt-get install openssh-client")
    (tmp_path / "bin").mkdir()
    for name in ("scp", "cp"):
        (tmp_path / "bin" / name).symlink_to(Path(shutil.which(name)))
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}")
    assert copy_back(str(pack.folder), tmp_path / "home").files == 2
