"""Compares the manifests with the sources. Run by check.sh, which explains it."""

import json
import re
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent

# Folder or image -> where its flags are defined.
SOURCES = {
    "embed-service": ["embed-service/src", "service/src"],
    "decoder-service": ["decoder-service/src", "service/src"],
    "trainer": ["trainer/src"],
}
FOLDERS = {
    "base/embed-service": "embed-service",
    "base/decoder-service": "decoder-service",
    "precompute": "trainer",
}
# Overlays and the README name variables of any of them.
SHARED_FOLDERS = ["overlays", "README.md"]

problems = []


def problem(where, text):
    if (where, text) not in problems:
        problems.append((where, text))


def sources_of(program):
    files = [f for d in SOURCES[program] for f in sorted((ROOT / d).rglob("*.rs"))]
    return "\n".join(f.read_text() for f in files)


CODE = {program: sources_of(program) for program in SOURCES}
PROTOS = {
    f"{package}.{service}"
    for f in (ROOT / "proto").rglob("*.proto")
    for package in re.findall(r"^package ([\w.]+);", f.read_text(), re.M)
    for service in re.findall(r"^service (\w+)", f.read_text(), re.M)
}


def knows_variable(program, name):
    return f'"{name}"' in CODE[program]


def knows_flag(program, flag):
    """`--drain-timeout` is `long = "drain-timeout"`, or clap's name for the field `drain_timeout`."""
    name = flag.removeprefix("--")
    field = name.replace("-", "_")
    return bool(
        re.search(rf'long\s*=\s*"{name}"', CODE[program])
        or re.search(rf"^\s*(pub(\(\w+\))? )?{field}:", CODE[program], re.M)
    )


def knows_command(program, command):
    """`precompute` is the variant `Precompute` of an enum that clap derives subcommands from."""
    variant = "".join(part.capitalize() for part in command.split("-"))
    enums = re.findall(r"\bSubcommand\b[^{]*enum \w+ \{(.*?)^\}", CODE[program], re.M | re.S)
    return any(re.search(rf"^\s*{variant}\s*[({{,]", body, re.M) for body in enums)


def check_names():
    """Every SCONE_ name written anywhere, with or without kubectl."""
    count = 0
    paths = [(HERE / folder, [program]) for folder, program in FOLDERS.items()]
    paths += [(HERE / folder, list(SOURCES)) for folder in SHARED_FOLDERS]
    for path, programs in paths:
        for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
            if not file.is_file():
                continue
            for name in sorted(set(re.findall(r"\bSCONE_[A-Z0-9_]*[A-Z0-9]", file.read_text()))):
                count += 1
                if not any(knows_variable(program, name) for program in programs):
                    problem(file.relative_to(ROOT), f"{name} is not in {', '.join(programs)}")
    return count


def objects(text):
    """The documents kubectl printed one after the other; a list counts as its items."""
    decoder, at = json.JSONDecoder(), 0
    while at < len(text.rstrip()):
        value, end = decoder.raw_decode(text, at)
        yield from value["items"] if value["kind"].endswith("List") else [value]
        at = end + len(text[end:]) - len(text[end:].lstrip())


def seconds(text):
    match = re.fullmatch(r"(\d+)(s|m)", text)
    return int(match[1]) * {"s": 1, "m": 60}[match[2]] if match else None


def port_of(address):
    return int(address.rsplit(":", 1)[1])


def check_environment(where, program, environment):
    for name in environment:
        if not name.startswith("SCONE_"):
            problem(where, f"{name} has no SCONE_ prefix")
        elif not knows_variable(program, name):
            problem(where, f"{name} is not in {program}")


def check_arguments(where, program, arguments):
    for i, argument in enumerate(arguments):
        if argument.startswith("--"):
            flag = argument.split("=")[0]
            if not knows_flag(program, flag):
                problem(where, f"{flag} is not a flag of {program}")
        elif i == 0 and not knows_command(program, argument):
            problem(where, f"{argument} is not a command of {program}")


def check_ports(where, container, environment):
    ports = {p["name"]: p["containerPort"] for p in container.get("ports", [])}
    for name, variable in (("grpc", "SCONE_LISTEN"), ("metrics", "SCONE_METRICS_LISTEN")):
        if name in ports and variable not in environment:
            problem(where, f"port {name} is declared, but {variable} is not set")
        elif variable in environment and ports.get(name) != port_of(environment[variable]):
            problem(where, f"{variable}={environment[variable]}, but port {name} is {ports.get(name)}")
    for kind in ("startupProbe", "readinessProbe", "livenessProbe"):
        probe = container.get(kind, {})
        if "grpc" in probe:
            if probe["grpc"]["port"] != ports.get("grpc"):
                problem(where, f"{kind} asks port {probe['grpc']['port']}")
            service = probe["grpc"].get("service")
            if service and service not in PROTOS:
                problem(where, f"{kind} asks for {service}, which no proto declares")
        if "httpGet" in probe and probe["httpGet"]["port"] not in ports:
            problem(where, f"{kind} asks port {probe['httpGet']['port']}")


def check_grace(where, pod, container, environment):
    if "SCONE_DRAIN_TIMEOUT" not in environment:
        return
    stop = container.get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0)
    drain = seconds(environment["SCONE_DRAIN_TIMEOUT"])
    grace = pod.get("terminationGracePeriodSeconds", 30)
    if drain is None or grace <= stop + drain:
        problem(
            where,
            f"terminationGracePeriodSeconds {grace} must exceed preStop {stop} s "
            f"plus SCONE_DRAIN_TIMEOUT {environment['SCONE_DRAIN_TIMEOUT']}",
        )


def check_embed_addresses(where, environment, services):
    """Addresses of the embed tier that name a Service must name one that is there, and its port."""
    for address in filter(None, environment.get("SCONE_EMBED", "").split(",")):
        host, port = address.split("://")[-1].rsplit(":", 1)
        service = services.get(host.split(".")[0])
        if service is None:
            problem(where, f"SCONE_EMBED names {host}, but there is no such Service")
        elif int(port) not in [p["port"] for p in service["spec"]["ports"]]:
            problem(where, f"SCONE_EMBED={address}, but the Service has no port {port}")


def check_pod(where, pod, configs, services):
    if pod.get("enableServiceLinks") is not False:
        problem(where, "enableServiceLinks must be false")
    volumes = {v["name"] for v in pod.get("volumes", [])}
    for container in pod.get("initContainers", []) + pod["containers"]:
        here = f"{where}/{container['name']}"
        if not container.get("securityContext", {}).get("readOnlyRootFilesystem"):
            problem(here, "the root file system must be read-only")
        if not container.get("resources", {}).get("requests"):
            problem(here, "no resource requests")
        for mount in container.get("volumeMounts", []):
            if mount["name"] not in volumes:
                problem(here, f"mounts {mount['name']}, which the pod does not have")
        program = container["image"].split("/")[-1].split(":")[0]
        if program not in SOURCES:
            continue
        environment = {}
        for source in container.get("envFrom", []):
            name = source["configMapRef"]["name"]
            if name not in configs:
                problem(here, f"there is no ConfigMap {name}")
            environment.update(configs.get(name, {}))
        environment.update({e["name"]: e.get("value", "") for e in container.get("env", [])})
        check_environment(here, program, environment)
        check_arguments(here, program, container.get("args", []))
        check_ports(here, container, environment)
        check_grace(here, pod, container, environment)
        check_embed_addresses(here, environment, services)


def check_rendered(file):
    found = list(objects(file.read_text()))
    configs = {o["metadata"]["name"]: o.get("data", {}) for o in found if o["kind"] == "ConfigMap"}
    services = {o["metadata"]["name"]: o for o in found if o["kind"] == "Service"}
    pods = 0
    for o in found:
        spec = o.get("spec", {})
        pod = spec if o["kind"] == "Pod" else spec.get("template", {}).get("spec")
        if pod is None:
            continue
        pods += 1
        # A StatefulSet's claims are volumes of its pods.
        claims = [{"name": c["metadata"]["name"]} for c in spec.get("volumeClaimTemplates") or []]
        pod = {**pod, "volumes": pod.get("volumes", []) + claims}
        check_pod(f"{file.stem}: {o['kind']} {o['metadata']['name']}", pod, configs, services)
    return pods


def main():
    names = check_names()
    files = sorted(Path(sys.argv[1]).glob("*.json"))
    pods = sum(check_rendered(file) for file in files)
    for where, text in problems:
        print(f"{where}: {text}", file=sys.stderr)
    print(f"{names} names, {len(files)} kustomizations, {pods} pod templates, {len(problems)} problems")
    return 1 if problems else 0


sys.exit(main())
