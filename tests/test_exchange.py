"""Packs that travel: strangers' archives, secrets, formulas. Nothing leaves its folder, nothing private leaves home."""

import contextlib
import io
import json
import os
import shutil
import stat
import tarfile
import zipfile
from pathlib import Path

import pytest
from healthy_pack import healthy_folder
from typer.testing import CliRunner

from labkit.archive import Limits, safe_name, unpack
from labkit.cli import app
from labkit.errors import LabError
from labkit.evidence import Pack, csv_text, read_csv, read_manifest, sha256_of, spreadsheet_safe
from labkit.exchange import export_pack, import_pack
from labkit.layout import DATA, NOTEBOOKS
from labkit.redaction import DETECTORS, OWN, patterns, redact
from labkit.verification import Verdict, verify

ROUND = ("zip", "tar", "gztar", "bztar", "xztar")


@pytest.fixture
def pack(tmp_path_factory, tmp_path) -> Path:
    return Path(shutil.copytree(healthy_folder(tmp_path_factory), tmp_path / "local_cpu"))


def tar_of(path: Path, *members: tuple[str, bytes, dict]) -> Path:
    with tarfile.open(path, "w") as held:
        for name, content, facts in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            for key, value in facts.items():
                setattr(info, key, value)
            held.addfile(info, io.BytesIO(content))
    return path


def zip_of(path: Path, *members: tuple[str, bytes, int]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as held:
        for name, content, mode in members:
            info = zipfile.ZipInfo(name)
            info.external_attr, info.compress_type = mode << 16, zipfile.ZIP_DEFLATED
            held.writestr(info, content)
    return path


# Archives


@pytest.mark.parametrize("form", ROUND)
def test_a_pack_comes_back_from_every_kind_of_archive(pack, tmp_path, form):
    archive = Path(shutil.make_archive(str(tmp_path / "handed_in"), form, pack.parent, pack.name))
    parcel = import_pack(archive, tmp_path / "back")
    assert parcel.changed == {}
    assert verify(tmp_path / "back").exit_code == 0
    assert not list(tmp_path.glob(".labkit-*"))


def test_the_kind_is_told_by_the_bytes_and_not_by_the_name(pack, tmp_path):
    archive = shutil.make_archive(str(tmp_path / "a"), "gztar", pack.parent, pack.name)
    os.rename(archive, tmp_path / "pack.zip")
    assert import_pack(tmp_path / "pack.zip", tmp_path / "back").files


LINK = {"type": tarfile.SYMTYPE, "linkname": "/etc/passwd"}
NAMES = [
    "../escaped",
    "/etc/escaped",
    "a/../../escaped",
    "C:/escaped",
    "a\\..\\escaped",
    "a\x01b",
    "con.txt",
    "a. ",
    "a/b:c",
]


@pytest.mark.parametrize("name", NAMES)
def test_a_name_that_leads_elsewhere_refuses_the_archive_and_is_named(tmp_path, name):
    for archive in (tar_of(tmp_path / "a.tar", (name, b"x", {})), zip_of(tmp_path / "a.zip", (name, b"x", 0o100644))):
        with pytest.raises(LabError, match="was not unpacked: the entry") as error:
            unpack(archive, tmp_path / "in" / "to")
        assert ascii(name)[1:6] in error.value.what
    assert not list(tmp_path.rglob("*escaped*"))


@pytest.mark.parametrize(
    ("facts", "said"),
    [
        (LINK, "a link"),
        ({"type": tarfile.LNKTYPE, "linkname": "manifest.json"}, "a link"),
        ({"type": tarfile.CHRTYPE, "devmajor": 1, "devminor": 5}, "a device"),
        ({"type": tarfile.BLKTYPE}, "a device"),
        ({"type": tarfile.FIFOTYPE}, "a device"),
    ],
)
def test_links_and_devices_are_refused_by_name(tmp_path, facts, said):
    archive = tar_of(tmp_path / "a.tar", ("ok.txt", b"x", {}), ("odd", b"", facts))
    with pytest.raises(LabError, match=f"the entry 'odd' is {said}"):
        unpack(archive, tmp_path / "into")


def test_links_and_devices_in_a_zip_are_refused_too(tmp_path):
    for kind, said in ((stat.S_IFLNK, "a link"), (stat.S_IFCHR, "a device")):
        archive = zip_of(tmp_path / "a.zip", ("odd", b"/etc/passwd", kind | 0o777))
        with pytest.raises(LabError, match=f"the entry 'odd' is {said}"):
            unpack(archive, tmp_path / said)
    with zipfile.ZipFile(tmp_path / "lzma.zip", "w", zipfile.ZIP_LZMA) as held:
        held.writestr("odd", b"x" * 1000)
    with pytest.raises(LabError, match="compressed in a way that is not read"):
        unpack(tmp_path / "lzma.zip", tmp_path / "into")


@pytest.mark.parametrize("form", ["zip", "gz", "bz2", "xz"])
def test_an_archive_that_unpacks_to_much_more_than_it_is_is_stopped_early(tmp_path, form):
    bomb = bytes(16 * 2**20)
    if form == "zip":
        archive = zip_of(tmp_path / "bomb.zip", ("zeros", bomb, 0o100644))
    else:
        archive = tmp_path / f"bomb.tar.{form}"
        with tarfile.open(archive, f"w:{form}") as held:
            info = tarfile.TarInfo("zeros")
            info.size = len(bomb)
            held.addfile(info, io.BytesIO(bomb))
    with pytest.raises(LabError, match="unpacks to more than"):
        unpack(archive, tmp_path / "into")
    assert sum(path.stat().st_size for path in (tmp_path / "into").rglob("*")) < 8 * 2**20


def test_size_count_length_and_depth_have_limits(tmp_path):
    archive = tar_of(tmp_path / "a.tar", *((f"{n}.txt", b"x" * 100, {}) for n in range(20)))
    for limits, said in (
        (Limits(entries=10), "more than 10 entries"),
        (Limits(total_bytes=1_000), "more than 1,000 bytes"),
    ):
        with pytest.raises(LabError, match=said):
            unpack(archive, tmp_path / said, limits)
    for name in ("a" * 300, "/".join("a" * 20)):
        with pytest.raises(LabError, match="too long or too deep"):
            safe_name(name)


def test_two_names_that_are_one_on_some_system_are_refused(tmp_path):
    for number, pair in enumerate((("README.md", "readme.md"), ("caf\u00e9", "cafe\u0301"), ("a", "a/b"))):
        archive = zip_of(tmp_path / f"{number}.zip", *((name, b"x", 0o100644) for name in pair))
        with pytest.raises(LabError, match=r"twice|both a file and a folder"):
            unpack(archive, tmp_path / str(number))


def test_a_name_that_is_not_utf_8_is_refused(tmp_path):
    archive = tar_of(tmp_path / "a.tar", ("\udcff.csv", b"x", {}))
    with pytest.raises(LabError, match="not UTF-8"):
        unpack(archive, tmp_path / "into")


@pytest.mark.parametrize(
    "content", [b"", b"PK\x03\x04 nonsense", b"\x1f\x8b\x08 nonsense", b"BZh9", b"\xfd7zXZ\x00", b"x" * 2_000]
)
def test_what_is_no_archive_is_a_clear_error(tmp_path, content):
    (tmp_path / "a.zip").write_bytes(content)
    with pytest.raises(LabError, match=r"a\.zip was not unpacked"):
        unpack(tmp_path / "a.zip", tmp_path / "into")


def test_damage_at_any_byte_of_an_archive_is_a_clear_error_or_its_files(tmp_path):
    whole = zip_of(
        tmp_path / "a.zip", ("p/manifest.json", b"{}" * 40, 0o100644), ("p/b", b"xyz" * 40, 0o100644)
    ).read_bytes()
    plain = tar_of(tmp_path / "a.tar", ("p/manifest.json", b"{}" * 40, {})).read_bytes()[:2048]
    for data in (whole, plain):
        for at in range(0, len(data), 7):
            (tmp_path / "b").write_bytes(data[:at] + bytes([data[at] ^ 0xFF]) + data[at + 1 :])
            out = tmp_path / f"out{len(data)}-{at}"
            with contextlib.suppress(LabError):
                assert unpack(tmp_path / "b", out).is_relative_to(out)
    beside = {path.name for path in tmp_path.iterdir() if not path.name.startswith("out")}
    assert beside == {"a.zip", "a.tar", "b"}, "nothing was written beside the folders that were given"


def test_a_header_that_wants_gigabytes_is_not_read(tmp_path):
    info = tarfile.TarInfo("x")
    info.type, info.size = tarfile.XHDTYPE, 2**31
    (tmp_path / "a.tar").write_bytes(info.tobuf() + bytes(6 * 2**20))
    with pytest.raises(LabError, match="list of entries is larger"):
        unpack(tmp_path / "a.tar", tmp_path / "into")


def test_a_failed_import_leaves_nothing_and_never_overwrites(pack, tmp_path):
    archive = tar_of(tmp_path / "a.tar", ("p/manifest.json", b"{}", {}), ("p/odd", b"", LINK))
    with pytest.raises(LabError, match="a link"):
        import_pack(archive, tmp_path / "new")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.tar", "local_cpu"]
    with pytest.raises(LabError, match="is there already"):
        import_pack(archive, pack)
    with pytest.raises(LabError, match="there is no archive"):
        import_pack(tmp_path / "none.zip", tmp_path / "new")


def test_an_archive_without_a_pack_or_with_two_is_refused(tmp_path):
    for members, said in (
        (("a/x.txt",), "holds no manifest.json"),
        (("a/manifest.json", "b/manifest.json"), "holds 2 packs"),
    ):
        archive = tar_of(tmp_path / "a.tar", *((name, b"{}", {}) for name in members))
        with pytest.raises(LabError, match=said):
            import_pack(archive, tmp_path / "new")


# Secrets

SECRETS = {
    "Hugging Face token": "hf_" + "aB3" * 12,
    "OpenAI-style key": "sk-proj-" + "aB3d" * 12,
    "AWS Access Key": "AKIA" + "ABCD2345" * 2,
    "Azure Storage Account access key": "AccountKey=" + "aB3d" * 22,
    "Google API key": "AIza" + "aB3dE" * 7,
    "GitHub Token": "ghp_" + "aB3d" * 9,
    "GitHub token": "github_pat_" + "aB3d_" * 12,
    "GitLab Token": "glpat-" + "aB3dE" * 4,
    "Slack Token": "xoxb-1234567890-" + "aB3d" * 6,
    "Stripe Access Key": "sk_live_" + "aB3d" * 6,
    "URL credentials": "https://mirela:correct-horse@example.org/x",
    "bearer token": "Authorization: Bearer " + "aB3d" * 6,
    "private key": "-----BEGIN RSA PRIVATE KEY-----\nMIIEaB3d\n-----END RSA PRIVATE KEY-----",
    "home path": "/home/mirela/evidence",
    "host name": "ip-10-0-0-5.ec2.internal",
    "shell prompt": "mirela@gpu-box-7:~/course$ ls",
}
ADDRESS = "https://raw.githubusercontent.com/a/b"


@pytest.mark.parametrize("kind", SECRETS)
def test_a_secret_is_taken_out_before_it_is_stored_and_is_reported(tmp_path, capsys, kind):
    secret = SECRETS[kind]
    pack = Pack(tmp_path / "pack", "local_cpu")
    pack.write_text("first_run.md", f"- Output: {secret} and more\n", "13.2")
    pack.write_json("service_contract.json", {"note": f"x {secret} y"}, "13.4")
    (pack.folder / "gpu_train_log.txt").write_text(f"device: cpu\n{secret} \n")
    pack.record("gpu_train_log.txt", "13.2")
    private = {"home path": "mirela", "shell prompt": "mirela", "URL credentials": "correct-horse"}.get(
        kind, secret[-12:]
    )
    told = capsys.readouterr().err
    for name in ("first_run.md", "service_contract.json", "gpu_train_log.txt"):
        text = (pack.folder / name).read_text()
        assert private not in text, text
        assert kind in read_manifest(pack.folder)["files"][name]["redacted"]
        assert f"taken out of {name} before it was recorded" in told
    assert json.loads((pack.folder / "service_contract.json").read_text())
    assert read_manifest(pack.folder)["files"]["first_run.md"]["sha256"] == sha256_of(pack.folder / "first_run.md")


def test_outputs_of_notebooks_are_searched_and_stay_a_notebook():
    key = SECRETS["private key"].splitlines(keepends=True)
    picture = "AKIA" + "ABCD2345" * 2  # by chance in base64
    output = {"output_type": "stream", "name": "stdout", "text": ["a\n", *key]}
    shown = {"output_type": "display_data", "data": {"image/png": picture, "text/plain": [SECRETS["home path"]]}}
    cell = {
        "cell_type": "code",
        "source": ["x = 1\n", f"t = '{SECRETS['Hugging Face token']}'"],
        "outputs": [output, shown],
    }
    clean = redact("a.ipynb", json.dumps({"cells": [cell], "metadata": {"tags": ["a", "b"]}}).encode())
    held = json.loads(clean.content)
    assert clean.found == {"Hugging Face token": 1, "home path": 1, "private key": 1}
    assert "".join(held["cells"][0]["outputs"][0]["text"]) == "a\n[redacted: private key]"
    assert held["cells"][0]["outputs"][1]["data"] == {"image/png": picture, "text/plain": ["~/evidence"]}
    assert held["metadata"]["tags"] == ["a", "b"]


def test_no_alarm_on_what_the_workbook_ships_and_on_a_healthy_pack(pack):
    for folder in (pack, NOTEBOOKS, DATA):
        for path in (p for p in folder.rglob("*") if p.is_file()):
            assert redact(path.name, path.read_bytes()).found == {}, path
    honest = (
        f"see {ADDRESS} and user@example.org; /root, /homepage, sk-learn-based-pipelines-for-everyone, home/x; a.local"
    )
    assert redact("a.md", honest.encode()).found == {}


def test_taking_out_twice_changes_nothing_more():
    text = "\n".join(SECRETS.values()).encode()
    once = redact("a.txt", text)
    assert redact("a.txt", once.content).content == once.content
    assert set(once.found) >= {"Hugging Face token", "URL credentials"}


def test_a_text_that_keeps_the_search_busy_is_refused(monkeypatch):
    monkeypatch.setattr("labkit.redaction.SECONDS", 0.05)
    with pytest.raises(LabError, match=r"a\.txt could not be searched"):
        redact("a.txt", b"eyJ" * 400_000 + b"sk-" * 400_000)


def test_this_machine_is_known_by_its_name(monkeypatch):
    patterns.cache_clear()
    monkeypatch.setattr("platform.node", lambda: "gpu-lab-17")
    try:
        assert redact("a.md", b"on gpu-lab-17 now").content == b"on [redacted: host name] now"
    finally:
        patterns.cache_clear()
    assert len(patterns()) >= len(OWN) + len(DETECTORS)


def test_import_takes_secrets_out_and_keeps_the_hash_that_was(pack, tmp_path):
    path = pack / "first_run.md"
    path.write_text(path.read_text().replace("Good morning.", f"token {SECRETS['Hugging Face token']}"))
    manifest = read_manifest(pack)
    before = sha256_of(path)
    manifest["files"]["first_run.md"] |= {"sha256": before, "bytes": path.stat().st_size}
    (pack / "manifest.json").write_text(json.dumps(manifest))
    contract = (pack / "service_contract.json").read_text()
    (pack / "service_contract.json").write_text(contract.replace("labkit chat", SECRETS["GitHub Token"]))  # no new hash
    archive = Path(shutil.make_archive(str(tmp_path / "a"), "zip", pack.parent, pack.name))
    parcel = import_pack(archive, tmp_path / "back")
    assert parcel.changed["first_run.md"] == {"Hugging Face token": 1}
    entry = read_manifest(tmp_path / "back")["files"]["first_run.md"]
    assert (entry["original_sha256"], entry["redacted"]) == (before, {"Hugging Face token": 1})
    found = {finding.name: finding.verdict for finding in verify(tmp_path / "back").artifacts}
    assert found["first_run.md"] is Verdict.SUPPORTED
    assert found["service_contract.json"] is Verdict.CONTRADICTED, "importing must not make a forgery whole"


# Export


def test_an_export_is_the_same_twice_and_verifies_after_import(pack, tmp_path):
    (pack / ".hidden").write_text("x")
    first, second = (export_pack(pack, tmp_path / f"{n}.zip") for n in (1, 2))
    assert first.path.read_bytes() == second.path.read_bytes()
    assert (first.changed, ".hidden" in zipfile.ZipFile(first.path).namelist()) == ({}, False)
    import_pack(first.path, tmp_path / "back")
    assert verify(tmp_path / "back").exit_code == verify(pack).exit_code == 0


@pytest.mark.parametrize("cell", ["=1+1", "+1+1", "-2+3", "@SUM(A1)", "\tx", "\r=x", " =x"])
def test_a_formula_is_neutralised_on_export_and_nowhere_else(pack, tmp_path, cell):
    cases, rows = (read_csv(pack / name) for name in ("eval_cases.csv", "eval_results.csv"))
    rows[0]["output"] = cell
    rows[1]["output"] = "-0.5"
    for name, held in (("eval_cases.csv", cases), ("eval_results.csv", rows)):
        held[0]["check"] = held[1]["check"] = "min_words:1"
        Pack(pack, "local_cpu").write_text(name, csv_text(held, list(held[0])), "13.2")
    parcel = export_pack(pack, tmp_path / "a.zip")
    assert parcel.changed == {"eval_results.csv": {"spreadsheet formula": 1}}
    import_pack(tmp_path / "a.zip", tmp_path / "back")
    assert [row["output"] for row in read_csv(tmp_path / "back" / "eval_results.csv")][:2] == [f"'{cell}", "-0.5"]
    assert verify(tmp_path / "back").exit_code == 0
    assert read_csv(pack / "eval_results.csv")[0]["output"] == cell


def test_numbers_are_no_formulas():
    assert [spreadsheet_safe(cell) for cell in ("-1", "-1e-5", "+2", 7, None, "", "a=b")] == [
        "-1",
        "-1e-5",
        "+2",
        7,
        None,
        "",
        "a=b",
    ]


def test_a_link_is_not_exported(pack, tmp_path):
    (pack / "secret.txt").symlink_to("/etc/passwd")
    with pytest.raises(LabError, match=r"secret\.txt is a link"):
        export_pack(pack, tmp_path / "a.zip")
    assert not (tmp_path / "a.zip").exists()


def test_the_commands_say_what_they_did(pack, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = CliRunner()
    assert "packed: " in run.invoke(app, ["export", "pack", str(pack), "--out", "a.zip"]).output
    done = run.invoke(app, ["import", "a.zip", "--out", "back"])
    assert (done.exit_code, "next: labkit verify back" in done.output) == (0, True)
    checked = run.invoke(app, ["check", "13.2", "--evidence", "back"])
    assert (checked.exit_code, "Lesson 13.2 on the route local_cpu: 7 of 7" in checked.output) == (0, True), (
        checked.output
    )
    (tmp_path / "back" / "first_run.md").unlink()
    checked = run.invoke(app, ["check", "13.2", "--evidence", "back"])
    assert (checked.exit_code, "missing:  first_run.md" in checked.output) == (1, True)
