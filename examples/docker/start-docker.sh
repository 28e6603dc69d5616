#!/bin/bash
# Docker by hand: does what the recipe `docker` declares, then runs a command.
mkdir -p /airlock/disk/docker /var/lib/docker
mount --bind /airlock/disk/docker /var/lib/docker

dockerd &>/var/log/dockerd.log &

# It listens before it serves: who connects then has to wait, and that is all.
for i in $(seq 1 60); do
    [ -S /var/run/docker.sock ] && break
    sleep 0.5
done

if [ ! -S /var/run/docker.sock ]; then
    cat /var/log/dockerd.log >&2
    exit 1
fi

exec "$@"
