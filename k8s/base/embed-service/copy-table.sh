#!/bin/sh
# copy-table.sh SOURCE TARGET: makes TARGET a copy of the table directory SOURCE.
#
# sled opens a table for one process only and writes to it (recovery), so replicas cannot share
# one. A manifest (table.json) means a complete table, at both ends: wait for the source's, copy
# the target's last. A copy that is already the same table is kept, so a restart costs nothing.
set -eu
source=$1
target=$2
manifest=table.json

until [ -f "$source/$manifest" ]; do
    echo "waiting for $source/$manifest"
    sleep 5
done

if cmp -s "$source/$manifest" "$target/$manifest"; then
    echo "$target is already a copy of $source"
    exit 0
fi

echo "copying $source to $target"
rm -rf "$target"
mkdir -p "$target"
cp "$source/$manifest" "$target/$manifest.partial"
for file in "$source"/*; do
    [ "$file" = "$source/$manifest" ] || cp -R "$file" "$target/"
done
sync

# Another table may have been put in place meanwhile; then the copy is a mixture.
if ! cmp -s "$source/$manifest" "$target/$manifest.partial"; then
    echo "$source changed while it was copied; starting again" >&2
    exit 1
fi
mv "$target/$manifest.partial" "$target/$manifest"
echo "copied $(du -sk "$target" | cut -f1) KiB"
