#!/bin/sh
# Pin the requirements of the tests for each version of Celery: versions that were current together. Needs uv.
# Celery 5.6 is the shop's (app_src/requirements.txt); 5.3 is outside the tested range of hostctl/in_app/compat.py.
set -eu
cd "$(dirname "$0")"

# VERSION CONSTRAINTS PACKAGE...
lock() {
  version=$1 constraints=$2
  shift 2
  printf '%s\n' "$@" | uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-annotate \
    --no-emit-index-url --custom-compile-command tests/in_app/lock.sh --constraint "$constraints" \
    --output-file "requirements-celery$version.txt" - requirements.in
}

lock 5.3 /dev/null 'celery[redis]==5.3.6' 'kombu==5.3.7' 'billiard<4.3'
lock 5.4 /dev/null 'celery[redis]==5.4.0' 'kombu==5.4.2' 'billiard<4.3'
lock 5.5 /dev/null 'celery[redis]==5.5.3' 'kombu==5.5.4'
lock 5.6 ../../app_src/requirements.txt celery kombu redis
lock 5.7 /dev/null 'celery[redis]==5.7.0' 'kombu==5.7.0'
