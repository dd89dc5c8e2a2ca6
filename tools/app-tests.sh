#!/usr/bin/env bash
# Run test suites on the PostgreSQL, Redis and Python of the Debian this runs in.
#
#   app            the application's own tests                              (folder /app)
#   host_services  hostctl's database code and review of migrations, gunicorn, (folder /seedbed/tests/host_services)
#                  and rules and dashboard for Prometheus
#   in_app         hostctl/in_app with every supported version of Celery    (folder /seedbed/tests/in_app)
#
# Expects the packages postgresql, redis-server, prometheus, libfaketime and python3-venv; uv; the folders above, which may be read-only; a folder for
# data, WORK (default /work), and one for virtual environments and uv's cache, CACHE (default /cache), which may be kept.
# JUNIT is the path of the result files, to which each run adds its name. Exits with 1 if a suite failed.
set -euo pipefail

export WORK="${WORK:-/work}" CACHE="${CACHE:-/cache}"

# PostgreSQL refuses to run as root, and tests that pass as root may fail as another user.
if [ "$(id -u)" = 0 ]; then
  # Another image may have given the user another number.
  [ "$(stat --format=%U "$CACHE")" = postgres ] || chown --recursive postgres "$CACHE"
  chown postgres "$WORK"
  # The tests drop packets.
  exec setpriv --reuid postgres --regid postgres --init-groups --inh-caps +net_admin --ambient-caps +net_admin bash "$0" "$@"
fi

export HOME="$WORK" PYTHONDONTWRITEBYTECODE=1 UV_CACHE_DIR="$CACHE/uv"
postgresql=$(printf '%s\n' /usr/lib/postgresql/*/bin | sort -V | tail -n 1)

stop_servers() {
  "$postgresql/pg_ctl" stop --silent --mode immediate --pgdata "$WORK/postgresql"
  redis-cli -s "$WORK/redis.sock" shutdown nosave
}

# NAME REQUIREMENTS [BASE]: create a virtual environment; with another as BASE, install what differs into a copy of it.
# Reuse an environment whose requirements and Python are unchanged.
create_environment() {
  local environment="$CACHE/$1" base="${3:-$1}" made_of
  made_of=$(cat "$2" /usr/bin/python3 | sha256sum)
  if [ "$(cat "$environment/made-of" 2>/dev/null)" = "$made_of" ]; then
    return
  fi
  if [ "$base" = "$1" ]; then
    uv venv --quiet --clear --python /usr/bin/python3 "$environment"
  else
    # Hard links: uv and Python replace files, and write into none. Scripts in bin/ remain those of BASE, except python.
    rm -rf "$environment"
    cp --archive --link "$CACHE/$base" "$environment"
    rm "$environment/made-of"
  fi
  # Compiled: each of the many processes that the tests start would compile Django and Celery again.
  uv pip sync --quiet --compile-bytecode --python "$environment/bin/python" --require-hashes "$2"
  echo "$made_of" >"$environment/made-of"
}

# RESULT ENVIRONMENT FOLDER ARGUMENT...: run the tests of a folder; return 1 if they fail.
run_tests() {
  local result=$1 environment=$2 folder=$3
  echo "--- $result"
  cd "$folder"
  "$CACHE/$environment/bin/python" -m pytest -p no:cacheprovider ${JUNIT:+--junitxml="$JUNIT-$result.xml"} "${@:4}"
}

# The shop's first: its tests take longest, and the environments of the others are made from its own.
celery_versions=(5.6 5.7 5.5 5.4 5.3)

# VERSION: run the whole suite with the shop's version of Celery, the core of it with others; print the output at the end.
test_celery() {
  local tests=(-m core) log="$WORK/celery$1.log" status=0
  case "$1" in
    5.6) tests=(-m "not unsupported") ;;
    5.3) tests=(-m unsupported) ;;
  esac
  run_tests "in_app-celery$1" "celery$1" /seedbed/tests/in_app --numprocesses 4 --dist worksteal "${tests[@]}" \
    >"$log" 2>&1 || status=1
  flock "$WORK/output.lock" cat "$log"
  return "$status"
}
export -f run_tests test_celery

echo "Starting PostgreSQL and Redis ..."
"$postgresql/initdb" --pgdata "$WORK/postgresql" --username shop --auth trust --encoding UTF8 --locale C.UTF-8 >"$WORK/initdb.log"
"$postgresql/pg_ctl" start --silent --wait --pgdata "$WORK/postgresql" --log "$WORK/postgresql.log" \
  --options "-c listen_addresses=127.0.0.1 -c unix_socket_directories=$WORK -c fsync=off"
redis-server --daemonize yes --bind 127.0.0.1 --port 6379 --unixsocket "$WORK/redis.sock" --save '' --dir "$WORK" >"$WORK/redis.log"
trap stop_servers EXIT

export SECRET_KEY=only-for-tests
export DATABASE_URL=postgres://shop@127.0.0.1:5432/postgres
export CELERY_BROKER_URL=redis://127.0.0.1:6379/0
export CACHE_URL=redis://127.0.0.1:6379/1

python3 --version
"$postgresql/postgres" --version
redis-server --version

status=0
for suite in "$@"; do
  case "$suite" in
    app | host_services)
      [ -n "${app_environment:-}" ] || create_environment app /app/requirements-dev.txt
      app_environment=created
      folder=/app
      [ "$suite" = app ] || folder=/seedbed/tests/host_services
      run_tests "$suite" app "$folder" || status=1
      ;;
    in_app)
      for version in "${celery_versions[@]}"; do
        requirements="/seedbed/tests/in_app/requirements-celery$version.txt"
        create_environment "celery$version" "$requirements" "celery${celery_versions[0]}"
      done
      # Two at a time, since they mostly wait.
      printf '%s\n' "${celery_versions[@]}" | xargs --max-procs 2 --max-args 1 bash -c 'test_celery "$1"' - || status=1
      ;;
    *)
      echo "Unknown suite: $suite" >&2
      status=1
      ;;
  esac
done
exit "$status"
