#!/bin/bash
# Move all databases from PostgreSQL 17 to 15, as Debian 12 has it, with Seedbed's settings: earlier_cluster.sh APPLICATION
set -euo pipefail
name=$1
export DEBIAN_FRONTEND=noninteractive
as_postgres() { runuser -u postgres -- "$@"; }
cd /

systemctl stop "$name"
"${name}ctl" halt
as_postgres pg_dumpall >/run/databases.sql

# The same archive, whose packages of PostgreSQL 15 install on Debian 13.
for list in /etc/apt/sources.list /etc/apt/sources.list.d/*.sources; do
  [ ! -e "$list" ] || sed 's/trixie/bookworm/g' "$list" >"/etc/apt/sources.list.d/earlier.${list##*.}"
done
apt-get -qq update
apt-get -qq install --no-install-recommends postgresql-15 >/dev/null
rm /etc/apt/sources.list.d/earlier.*

cp -a /etc/postgresql/17/main /run/settings
systemctl disable --quiet --now postgresql@17-main
pg_dropcluster --stop 17 main
[ ! -e /etc/postgresql/15/main ] || pg_dropcluster --stop 15 main
pg_createcluster --port 5432 15 main >/dev/null
install -d /etc/postgresql/15/main/conf.d
sed 's,/17/,/15/,g' /run/settings/conf.d/60-seedbed.conf >/etc/postgresql/15/main/conf.d/60-seedbed.conf
install -o root -g postgres -m 640 /run/settings/pg_hba.seedbed.conf /etc/postgresql/15/main/
systemctl enable --quiet --now postgresql@15-main
# Without what 15 does not know, and the role of the superuser, which exists.
sed -e '/^SET transaction_timeout/d' -e '/^GRANT /s/ WITH INHERIT .*/;/' -e '/^CREATE ROLE postgres;/d' /run/databases.sql |
  as_postgres psql --quiet --set=ON_ERROR_STOP=1 --output=/dev/null
systemctl start "$name"
# Debian may make an empty cluster of the new version.
pg_createcluster 17 main >/dev/null
"${name}ctl" verify
