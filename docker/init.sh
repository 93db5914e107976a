#!/bin/sh
# Makes the API keys that the parts of docker/compose.yaml use, before the task service may be reached; each once, in
# the directory that the part gets to see. It needs the database and nothing else. People get keys by hand:
#
#   docker compose -f docker/compose.yaml run --rm init dispatch api-key create ann --type human
set -eu
umask 077
directory=${1:-/run/dispatch}

make_key() {
    file=$directory/$1
    shift
    [ -s "$file" ] && return
    dispatch api-key create "$@" >"$file.new" || {
        echo "dispatch-init: $file is missing. If its key was made before, put the file back, or revoke the key." >&2
        exit 1
    }
    mv "$file.new" "$file"
}

make_key fleet/key dispatch
make_key flower/key flower --access read
