#!/bin/sh
# All that a card is to show, on a machine with Python 3.12 and torch but without a package index. Where there is one,
# `make gpu-bundle`; there, with the repository and build/gpu.tar.gz, this. It takes ten minutes at most.
cd "$(dirname "$0")/.." || exit
site=$(mktemp -d)
trap 'rm -rf "$site"' EXIT
tar -xzf build/gpu.tar.gz -C "$site" || exit
export PYTHONPATH="$site:$PWD"
python3 -m benchmarks.gpu "$@"
measured=$?
timeout 150 python3 -m pytest -q -m gpu && exit $measured
