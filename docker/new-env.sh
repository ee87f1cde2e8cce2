#!/bin/sh
# Writes docker/.env with a random value for every line of docker/.env.example. An existing file is left as it is.
set -eu
cd "$(dirname "$0")"
if [ -e .env ]; then
    echo "error: docker/.env exists already; the databases know its passwords. To begin anew, remove it and the volumes" >&2
    exit 5
fi
umask 077
while IFS= read -r line; do
    case $line in
        *=) printf '%s%s\n' "$line" "$(od -An -N 24 -t x1 /dev/urandom | tr -d ' \n')" ;;
        *) printf '%s\n' "$line" ;;
    esac
done <.env.example >.env.new
mv .env.new .env
echo "docker/.env is written (mode 600)"
