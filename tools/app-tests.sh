#!/usr/bin/env bash
# Tests on the PostgreSQL, Redis and Python of the Debian this runs in: the application's own, and those of the programs that
# run with the application's interpreter.
#
# Wanted: the packages postgresql, redis-server and python3-venv; the application in /app and the project's roles and
# tests in /seedbed, which may be read-only; a folder to write to, WORK (default /work). JUNIT is where results go: a path, to
# which each folder adds its name. The arguments are the folders with tests; the exit status is not 0 when one failed.
set -euo pipefail

export WORK="${WORK:-/work}"

# PostgreSQL refuses to run as root, and tests that pass as root may not pass as anybody else.
if [ "$(id -u)" = 0 ]; then
  chown postgres "$WORK"
  exec runuser -u postgres -- bash "$0" "$@"
fi

export HOME="$WORK" PYTHONDONTWRITEBYTECODE=1
# pip brings certificates of its own, unless told of the system's.
export PIP_CERT="${PIP_CERT:-/etc/ssl/certs/ca-certificates.crt}"
postgresql=$(printf '%s\n' /usr/lib/postgresql/*/bin | sort -V | tail -n 1)

stop_servers() {
  "$postgresql/pg_ctl" stop --silent --mode immediate --pgdata "$WORK/postgresql"
  redis-cli -s "$WORK/redis.sock" shutdown nosave
}

echo "Starting PostgreSQL and Redis ..."
"$postgresql/initdb" --pgdata "$WORK/postgresql" --username shop --auth trust --encoding UTF8 --locale C.UTF-8 >"$WORK/initdb.log"
"$postgresql/pg_ctl" start --silent --wait --pgdata "$WORK/postgresql" --log "$WORK/postgresql.log" \
  --options "-c listen_addresses=127.0.0.1 -c unix_socket_directories=$WORK -c fsync=off"
redis-server --daemonize yes --bind 127.0.0.1 --port 6379 --unixsocket "$WORK/redis.sock" --save '' --dir "$WORK" >"$WORK/redis.log"
trap stop_servers EXIT

echo "Installing the application's requirements ..."
python3 -m venv "$WORK/venv"
"$WORK/venv/bin/pip" install --quiet --disable-pip-version-check --no-cache-dir --require-hashes --requirement /app/requirements-dev.txt

export SECRET_KEY=only-for-tests
export DATABASE_URL=postgres://shop@127.0.0.1:5432/postgres
export CELERY_BROKER_URL=redis://127.0.0.1:6379/0
export CACHE_URL=redis://127.0.0.1:6379/1

"$WORK/venv/bin/python" --version
"$postgresql/postgres" --version
redis-server --version

status=0
for folder in "$@"; do
  cd "$folder"
  "$WORK/venv/bin/python" -m pytest -p no:cacheprovider ${JUNIT:+--junitxml="$JUNIT-$(basename "$folder").xml"} || status=1
done
exit "$status"
