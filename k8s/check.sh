#!/usr/bin/env bash
# Do the manifests agree with the code? Renders every kustomization (when kubectl is present; no
# cluster is asked) and compares flags, environment variables, health services, ports and
# time-outs with the sources. Exits with 1 and a list when something does not fit.
set -euo pipefail
cd "$(dirname "$0")"

bash -n check.sh
sh -n base/embed-service/copy-table.sh
sh -n precompute/publish-table.sh

rendered=$(mktemp -d)
trap 'rm -rf "$rendered"' EXIT
if command -v kubectl >/dev/null; then
    for folder in base mine-spark precompute upload overlays/*/; do
        folder=${folder%/}
        # kubectl prints YAML only; a local edit is how it turns that into JSON.
        kubectl kustomize "$folder" |
            kubectl annotate --local -f - -o json scone/checked=yes >"$rendered/${folder//\//-}.json"
    done
else
    echo 'kubectl not found: names are checked, rendered manifests are not' >&2
fi
exec python3 check.py "$rendered"
