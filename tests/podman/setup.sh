#!/usr/bin/env bash
# Readies a bare Debian 12 for tests/test_podman.py: podman, Harbor, and an image to build tasks on.
# No image registry is asked: the image is made of Debian's packages, as little as Debian's own slim
# image has, so that a Dockerfile proves that it brings all it needs. What is there already stays.
#
#     tests/podman/setup.sh && uv run pytest -n 0 -m slow tests/test_podman.py     as root
set -euo pipefail
cd "$(dirname "$0")"

packages=(podman runc netavark aardvark-dns iptables catatonit mmdebstrap)
if ! dpkg --status "${packages[@]}" >/dev/null 2>&1; then
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends "${packages[@]}"
fi

tools=$(uv tool dir --bin)
[ -x "$tools/harbor" ] || uv tool install --quiet harbor==0.26.0
[ -x "$tools/podman-compose" ] || uv tool install --quiet podman-compose==1.6.0

export CONTAINERS_CONF=$PWD/containers.conf
image=localhost/debian:12-jaxterm
made_by=$(sha256sum setup.sh | cut -c -16)  # a change of this script makes the image anew
if [ "$(podman image inspect --format '{{.Labels.made_by}}' "$image" 2>/dev/null)" != "$made_by" ]; then
    tar=$(mktemp --suffix=.tar)
    trap 'rm -f "$tar"' EXIT
    # Where the way to the package registries is signed by an authority of one's own, the machine trusts
    # it, and what a Dockerfile runs must too: hence the machine's certificates.
    mmdebstrap --quiet --mode=root --variant=minbase --include=ca-certificates \
        --dpkgopt=force-unsafe-io --dpkgopt='path-exclude=/usr/share/'{doc,info,locale,man}'/*' \
        --customize-hook='copy-in /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs' \
        bookworm "$tar"
    podman rmi --force "$image" >/dev/null 2>&1 || true
    podman import --quiet --change "LABEL made_by=$made_by" "$tar" "$image"
fi

podman run --rm --network=none "$image" true
# Dockerfiles install packages: containers must reach the registries.
podman run --rm "$image" apt-get -qq update
