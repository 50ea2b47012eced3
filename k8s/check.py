"""Compares the manifests with the sources. Run by check.sh, which explains it."""

import json
import re
import sys
from collections import defaultdict
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent

# Folder or image -> where its flags are defined.
SOURCES = {
    "embed-service": ["embed-service/src", "service/src"],
    "decoder-service": ["decoder-service/src", "service/src"],
    "trainer": ["trainer/src"],
}
# What the variables of `serve` begin with.
PREFIXES = {"embed-service": "SCONE_EMBED_", "decoder-service": "SCONE_", "trainer": "SCONE_"}
FOLDERS = {
    "base/embed-service": "embed-service",
    "base/decoder-service": "decoder-service",
    "precompute": "trainer",
    "mine-spark": "trainer",
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


def check_image():
    """Cargo wants the manifest of every workspace member, so the build must be given all of them."""
    members = re.search(r"^members = \[(.*?)\]", (ROOT / "Cargo.toml").read_text(), re.M | re.S)
    dockerfile = (HERE / "images/Dockerfile").read_text()
    let_in = (ROOT / ".dockerignore").read_text().splitlines()
    for member in re.findall(r'"([^"]+)"', members[1]):
        if not re.search(rf"^COPY {member} {member}$", dockerfile, re.M):
            problem("k8s/images/Dockerfile", f"does not copy the workspace member {member}")
        if f"!{member}" not in let_in:
            problem(".dockerignore", f"keeps out the workspace member {member}")


def objects(text):
    """The documents kubectl printed one after the other; a list counts as its items."""
    decoder, at = json.JSONDecoder(), 0
    while at < len(text.rstrip()):
        value, end = decoder.raw_decode(text, at)
        yield from value["items"] if value["kind"].endswith("List") else [value]
        at = end + len(text[end:]) - len(text[end:].lstrip())


def seconds(text):
    match = re.fullmatch(r"(\d+)(s|m|h)", text)
    if not match:
        sys.exit(f"{text}: write durations in the manifests as whole s, m or h")
    return int(match[1]) * {"s": 1, "m": 60, "h": 3600}[match[2]]


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


def check_ports(where, prefix, container, environment):
    ports = {p["name"]: p["containerPort"] for p in container.get("ports", [])}
    for name, suffix in (("grpc", "LISTEN"), ("http", "HTTP_LISTEN"), ("metrics", "METRICS_LISTEN")):
        variable = prefix + suffix
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


def check_times(where, prefix, pod, container, environment):
    if prefix + "DRAIN_TIMEOUT" in environment:
        stop = container.get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0)
        drain = environment[prefix + "DRAIN_TIMEOUT"]
        grace = pod.get("terminationGracePeriodSeconds", 30)
        if grace <= stop + seconds(drain):
            problem(
                where,
                f"terminationGracePeriodSeconds {grace} must exceed preStop {stop} s "
                f"plus {prefix}DRAIN_TIMEOUT {drain}",
            )
    start = environment.get("SCONE_EMBED_START_TIMEOUT")
    if start:
        probe = container["startupProbe"]
        budget = probe["periodSeconds"] * probe["failureThreshold"]
        if budget <= seconds(start):
            problem(where, f"startupProbe allows {budget} s, SCONE_EMBED_START_TIMEOUT is {start}")


def check_embed_addresses(where, environment, cluster):
    """SCONE_EMBED must name headless Services: they alone resolve to every replica."""
    headless = {
        f"{name}:{port['port']}"
        for name, service in cluster["Service"].items()
        if service["spec"].get("clusterIP") == "None"
        for port in service["spec"]["ports"]
        if port["name"] == "grpc"
    }
    for address in filter(None, environment.get("SCONE_EMBED", "").split(",")):
        if address not in headless:
            problem(where, f"SCONE_EMBED names {address}, which is no headless Service here")


def check_pod(where, pod, cluster):
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
            if name not in cluster["ConfigMap"]:
                problem(here, f"there is no ConfigMap {name}")
            else:
                environment.update(cluster["ConfigMap"][name]["data"])
        environment.update({e["name"]: e.get("value", "") for e in container.get("env", [])})
        check_environment(here, program, environment)
        check_arguments(here, program, container.get("args", []))
        check_ports(here, PREFIXES[program], container, environment)
        check_times(here, PREFIXES[program], pod, container, environment)
        check_embed_addresses(here, environment, cluster)


def check_rendered(file):
    found = list(objects(file.read_text()))
    cluster = defaultdict(dict)  # kind -> name -> object
    for o in found:
        cluster[o["kind"]][o["metadata"]["name"]] = o
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
        check_pod(f"{file.stem}: {o['kind']} {o['metadata']['name']}", pod, cluster)
    return pods


def main():
    names = check_names()
    check_image()
    files = sorted(Path(sys.argv[1]).glob("*.json"))
    pods = sum(check_rendered(file) for file in files)
    for where, text in problems:
        print(f"{where}: {text}", file=sys.stderr)
    print(f"{names} names, {len(files)} kustomizations, {pods} pod templates, {len(problems)} problems")
    return 1 if problems else 0


sys.exit(main())
