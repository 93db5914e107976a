#!/bin/sh
# Makes the secrets of docker/compose.yaml in docker/secrets, or in the directory that is named; keeps what is there.
#
#   sh docker/secrets.sh [DIRECTORY]
#
# Containers read these files under user ids of their own, and Compose mounts them as they are: so the files may be read
# by everybody and the directory by nobody but its owner.
set -eu
umask 077
here=$(dirname "$0")
directory=${1:-$here/secrets}

random() { od -An -N24 -tx1 /dev/urandom | tr -d ' \n'; }

sh "$here/../config/redis-users.sh" "$directory"
[ -s "$directory/postgres.password" ] || random >"$directory/postgres.password"
[ -s "$directory/flower.login" ] || printf 'ops:%s' "$(random)" >"$directory/flower.login"
chmod 700 "$directory"
chmod 444 "$directory"/*
