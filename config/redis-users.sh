#!/bin/sh
# Makes the passwords of dispatch's Redis and the file of users that config/redis.conf includes.
#
#   sh config/redis-users.sh DIRECTORY
#
# writes DIRECTORY/redis-USER.password for every user that has none yet, and DIRECTORY/redis-users.conf, which holds
# their hashes. Run again, it keeps the passwords and takes over new rights. To change a password delete its file and run
# it again, restart Redis, then what used the password. All files are for their owner only.
set -eu
umask 077

[ $# -eq 1 ] || { echo "usage: sh redis-users.sh DIRECTORY" >&2; exit 2; }
directory=$1
pattern=$(dirname "$0")/redis-users.conf
mkdir -p "$directory"

rules=$(cat "$pattern")
users=$(sed -n 's/^user \([a-z]*\) on #HASH.*/\1/p' "$pattern")
for user in $users; do
    file=$directory/redis-$user.password
    if [ ! -s "$file" ]; then
        od -An -N24 -tx1 /dev/urandom | tr -d ' \n' >"$file.new"
        mv "$file.new" "$file"
    fi
    hash=$(printf %s "$(cat "$file")" | sha256sum | cut -c1-64)
    rules=$(printf '%s\n' "$rules" | sed "s/^user $user on #HASH/user $user on #$hash/")
done
printf '%s\n' "$rules" >"$directory/redis-users.conf.new"
mv "$directory/redis-users.conf.new" "$directory/redis-users.conf"
