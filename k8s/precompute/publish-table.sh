#!/bin/sh
# publish-table.sh BUILT TABLE: puts the finished table directory BUILT in the place of TABLE.
#
# precompute opens the table once more after the manifest is written, to compare rows with the
# model. Whoever waits for TABLE must not copy it before that is over.
set -eu
built=$1
table=$2

rm -rf "$table.old"
if [ -e "$table" ]; then
    mv "$table" "$table.old"
fi
mv "$built" "$table"
rm -rf "$table.old"
echo "published $table"
