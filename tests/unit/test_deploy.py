"""The files for operators against the program: units, images and manifests say only what is true of it."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import kubernetes_validate
import pytest
import yaml

from kvloom import limits
from kvloom.clients.discovery import DEFAULT_HOST, DEFAULT_PORT
from kvloom.daemon.cli import VERBS
from kvloom.daemon.config import parse_size, resolve_config
from kvloom.daemon.config_file import parse_config_file
from kvloom.daemon.config_sources import CONFIG_VARIABLE, unknown_variables
from kvloom.daemon.machine import Machine
from kvloom.daemon.settings import SETTINGS

DEPLOY = Path(__file__).parents[2] / "deploy"
MACHINE = Machine(64 * 1024**3, 32 * 1024**3, 500 * 1024**3, 0, 4096)
FLAGS = {item.flag for item in SETTINGS} | {"--config"}
DRAIN_SECONDS = limits.DRAIN_SECONDS_MAX + limits.SHARED_DRAIN_SECONDS_MAX


@pytest.fixture(scope="module")
def manifests():
    text = (DEPLOY / "kubernetes" / "kvloom.yaml").read_text()
    return {item["kind"]: item for item in yaml.safe_load_all(text)}


@pytest.fixture(scope="module")
def pod(manifests):
    return manifests["StatefulSet"]["spec"]["template"]["spec"]


@pytest.fixture(scope="module")
def settings(manifests):
    """What the daemon in the pod is told."""
    return parse_config_file(manifests["ConfigMap"]["data"]["kvloom.toml"].encode(), "kvloom.toml").text


def unit():
    """Each assignment of the unit, in order."""
    lines = (DEPLOY / "systemd" / "kvloom.service").read_text().splitlines()
    return [tuple(line.split("=", 1)) for line in lines if "=" in line and not line.startswith("#")]


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd here")
def test_systemd_takes_the_unit(tmp_path):
    text = (DEPLOY / "systemd" / "kvloom.service").read_text()
    program = re.search(r"^ExecStart=(\S+)", text, re.MULTILINE)[1]
    file = tmp_path / "kvloom.service"
    # A program and a user that are here stand in for those of the machine where it will be installed.
    file.write_text(text.replace(program, sys.executable).replace("=kvloom\n", "=root\n"))
    result = subprocess.run(["systemd-analyze", "verify", str(file)], capture_output=True, text=True, timeout=60)
    assert [line for line in result.stderr.splitlines() if "kvloom.service" in line] == []
    file.write_text(text.replace(program, sys.executable).replace("Type=notify", "Type=notifi"))
    result = subprocess.run(["systemd-analyze", "verify", str(file)], capture_output=True, text=True, timeout=60)
    assert "notifi" in result.stderr


def test_the_socket_that_systemd_holds_is_where_clients_look():
    """One of them, since a daemon takes one; on loopback, as the default is."""
    lines = (DEPLOY / "systemd" / "kvloom.socket").read_text().splitlines()
    assert [line for line in lines if line.startswith("Listen")] == [f"ListenStream={DEFAULT_HOST}:{DEFAULT_PORT}"]


def test_the_unit_says_what_the_daemon_knows():
    said = unit()
    values = dict(said)
    variables = {value.split("=", 1)[0] for name, value in said if name == "Environment"}
    assert variables
    assert unknown_variables(dict.fromkeys(variables, "")) == {}
    _, verb, *flags = values["ExecStart"].split()
    assert verb in {item.name for item in VERBS}
    assert {flag for flag in flags if flag.startswith("--")} <= FLAGS
    assert values["Type"] == "notify"
    assert values["ExecReload"].split()[1] == "-HUP"
    assert int(values["TimeoutStopSec"]) > DRAIN_SECONDS
    assert int(values["LimitNOFILE"]) > limits.CONNECTIONS_MAX + limits.SSD_SEGMENTS_MAX


def test_the_image_runs_as_nobody_in_particular_and_asks_for_its_health():
    text = (DEPLOY / "docker" / "Dockerfile").read_text()
    user = re.findall(r"^USER (\d+):(\d+)$", text, re.MULTILINE)
    assert user == [("10001", "10001")]
    assert f"EXPOSE {DEFAULT_PORT}" in text
    verbs = {item.name for item in VERBS}
    assert re.search(r'HEALTHCHECK .* CMD \["kvloom", "(\w+)"\]', text)[1] in verbs
    assert re.search(r'^CMD \["(\w+)"\]', text, re.MULTILINE)[1] in verbs
    variables = re.findall(r"(KVLOOM_[A-Z_]+)=", text)
    assert unknown_variables(dict.fromkeys(set(variables) - {"KVLOOM_EXTRAS"}, "")) == {}


@pytest.mark.parametrize("version", ["1.30", kubernetes_validate.latest_version()])
def test_kubernetes_own_schemas_take_every_manifest(manifests, version):
    for manifest in manifests.values():
        kubernetes_validate.validate(manifest, version, strict=True)
    wrong = {**manifests["StatefulSet"], "spec": {**manifests["StatefulSet"]["spec"], "replikas": 1}}
    with pytest.raises(kubernetes_validate.ValidationError, match="replikas"):
        kubernetes_validate.validate(wrong, version, strict=True)


def test_the_pods_settings_hold(settings, pod):
    config = resolve_config(settings, MACHINE)
    assert not config.loopback
    (container,) = pod["containers"]
    assert container["args"][0] == "serve"
    assert set(container["args"][1::2]) <= FLAGS
    mounts = {item["mountPath"] for item in container["volumeMounts"]}
    assert container["args"][2] in mounts
    for path in (config.tls.certificate, config.tls.key, config.credentials):
        assert any(path.is_relative_to(mount) for mount in mounts), path
    assert not [item for item in container.get("env", ()) if item["name"].startswith("KVLOOM_")]


def test_the_pod_has_room_for_what_its_settings_ask(settings, pod, manifests):
    config = resolve_config(settings, MACHINE)
    memory = pod["containers"][0]["resources"]["limits"]["memory"]
    needed = config.memory_bytes + limits.INFLIGHT_BYTES_MAX + config.dirty_bytes_max + 1024**3
    assert parse_size("memory", memory) >= needed
    (claim,) = manifests["StatefulSet"]["spec"]["volumeClaimTemplates"]
    assert parse_size("storage", claim["spec"]["resources"]["requests"]["storage"]) > config.ssd_bytes
    image = (DEPLOY / "docker" / "Dockerfile").read_text()
    mounts = {item["name"]: item["mountPath"] for item in pod["containers"][0]["volumeMounts"]}
    data_dir = re.search(r"KVLOOM_DATA_DIR=(\S+)", image)[1]
    assert Path(data_dir).is_relative_to(mounts[claim["metadata"]["name"]])


def test_the_pod_is_asked_where_the_daemon_answers_and_waits_for_the_drain(pod, settings, manifests):
    (container,) = pod["containers"]
    port = int(settings.port)
    assert {item["name"]: item["containerPort"] for item in container["ports"]} == {"https": port}
    (exposed,) = manifests["Service"]["spec"]["ports"]
    assert (exposed["port"], exposed["targetPort"]) == (port, "https")
    paths = {name: container[name]["httpGet"] for name in ("startupProbe", "readinessProbe", "livenessProbe")}
    assert paths["readinessProbe"]["path"] == "/readyz"
    assert {paths["startupProbe"]["path"], paths["livenessProbe"]["path"]} == {"/healthz"}
    assert all((item["port"], item["scheme"]) == ("https", "HTTPS") for item in paths.values())
    grace = pod["terminationGracePeriodSeconds"]
    assert grace > DRAIN_SECONDS + int(container["lifecycle"]["preStop"]["exec"]["command"][1])


def test_the_pod_has_no_rights_and_no_service_variables(pod):
    assert pod["enableServiceLinks"] is False
    assert pod["automountServiceAccountToken"] is False
    assert pod["securityContext"]["runAsNonRoot"]
    image = (DEPLOY / "docker" / "Dockerfile").read_text()
    assert f"USER {pod['securityContext']['runAsUser']}:" in image
    for container in (*pod["containers"], *pod["initContainers"]):
        rights = container["securityContext"]
        assert rights == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }


def test_everything_that_is_mounted_and_selected_is_there(manifests, pod):
    volumes = {item["name"] for item in pod["volumes"]}
    volumes |= {item["metadata"]["name"] for item in manifests["StatefulSet"]["spec"]["volumeClaimTemplates"]}
    for container in (*pod["containers"], *pod["initContainers"]):
        assert {item["name"] for item in container["volumeMounts"]} <= volumes
    labels = manifests["StatefulSet"]["spec"]["template"]["metadata"]["labels"]
    assert manifests["StatefulSet"]["spec"]["selector"]["matchLabels"] == labels
    assert manifests["Service"]["spec"]["selector"] == labels
    assert manifests["StatefulSet"]["spec"]["serviceName"] == manifests["Service"]["metadata"]["name"]


def test_the_configuration_variable_is_no_setting():
    assert CONFIG_VARIABLE not in {item.variable for item in SETTINGS}
