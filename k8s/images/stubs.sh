#!/bin/sh
# Gives every crate whose manifest is here an empty library, program and build script, so that cargo can
# compile what they depend on before their sources are there. Run in a folder with manifests alone.
set -eu
for manifest in */Cargo.toml */*/Cargo.toml; do
    crate=${manifest%/Cargo.toml}
    mkdir -p "$crate/src"
    : >"$crate/src/lib.rs"
    # Targets that a manifest names must be there, or cargo does not read it.
    for kind in bench:benches test:tests; do
        folder=$crate/${kind#*:}
        mkdir -p "$folder"
        sed -n "/^\[\[${kind%:*}\]\]/,/^name/s/^name = \"\(.*\)\"/\1/p" "$manifest" | while read -r name; do
            echo 'fn main() {}' >"$folder/$name.rs"
        done
    done
done
# Programs, and the crate whose build script has dependencies.
for crate in embed-service decoder-service trainer; do
    echo 'fn main() {}' >"$crate/src/main.rs"
done
echo 'fn main() {}' >proto/build.rs
