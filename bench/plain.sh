#!/bin/sh
# The yardstick: the same server by a plain script, as one would type it. Runs on a bare Debian as root, with the application's
# source in /root/app. Only what site.yml is measured against: no accounts of its own for builds, no checks, no second run.
set -eu
export DEBIAN_FRONTEND=noninteractive UV_SYSTEM_CERTS=true PIP_CERT=/etc/ssl/certs/ca-certificates.crt
ADDRESS=$1

apt-get -qq update
apt-get -qq install --no-install-recommends ca-certificates python3 python3-venv unattended-upgrades needrestart tzdata \
  postgresql redis-server nginx openssl ufw fail2ban nftables python3-systemd >/dev/null

# Who comes in
printf '%s\n' 'PasswordAuthentication no' 'PermitRootLogin prohibit-password' 'X11Forwarding no' >/etc/ssh/sshd_config.d/00-plain.conf
sshd -t
systemctl reload ssh
ufw allow 22/tcp >/dev/null
ufw allow 80,443/tcp >/dev/null
ufw --force enable >/dev/null
printf '%s\n' '[DEFAULT]' 'banaction = nftables[type=multiport]' '[sshd]' 'enabled = true' 'backend = systemd' >/etc/fail2ban/jail.d/plain.conf
systemctl -q enable fail2ban
systemctl restart fail2ban

# Python
python3 -m venv /opt/uv
/opt/uv/bin/pip -q install --no-cache-dir -r /root/requirements-uv.txt
useradd --system --create-home --home-dir /srv/shop shop
mkdir -p /srv/shop/static /srv/shop/media /srv/shop/mail /srv/shop/run
cp -r /root/app /srv/shop/app
/opt/uv/bin/uv venv -q --python /usr/bin/python3 /srv/shop/venv
/opt/uv/bin/uv pip install -q --compile-bytecode --python /srv/shop/venv/bin/python -r /srv/shop/app/requirements.txt
/opt/uv/bin/uv venv -q --python /usr/bin/python3 /opt/flower
/opt/uv/bin/uv pip install -q --compile-bytecode --python /opt/flower/bin/python -r /root/requirements-flower.txt

# Database, broker, cache
runuser -u postgres -- psql -q -c "create role shop login password 'plain'" -c 'create database shop owner shop'
for name in broker:6379 cache:6380; do
  sed -e "s/^port .*/port ${name#*:}/" -e "s#^pidfile .*#pidfile /run/redis-${name%:*}/redis-server.pid#" \
    -e "s/^dbfilename .*/dbfilename ${name%:*}.rdb/" /etc/redis/redis.conf >"/etc/redis/redis-${name%:*}.conf"
  chown redis:redis "/etc/redis/redis-${name%:*}.conf"
done
systemctl -q disable --now redis-server
systemctl -q enable --now redis-server@broker redis-server@cache

# The application
cat >/etc/shop.env <<EOF
DJANGO_SETTINGS_MODULE=core.settings
SECRET_KEY=plain-plain-plain-plain-plain-plain-plain-plain-plain-plain
ALLOWED_HOSTS=$ADDRESS
DATABASE_URL=postgresql://shop:plain@127.0.0.1:5432/shop
CELERY_BROKER_URL=redis://127.0.0.1:6379/0
CACHE_URL=redis://127.0.0.1:6380/0
EMAIL_URL=file:///srv/shop/mail
DEFAULT_FROM_EMAIL=shop@example.org
STATIC_ROOT=/srv/shop/static
MEDIA_ROOT=/srv/shop/media
EOF
service() {
  cat >"/etc/systemd/system/$1.service" <<EOF
[Service]
User=shop
WorkingDirectory=/srv/shop/app
EnvironmentFile=/etc/shop.env
ExecStart=$2
Restart=always
[Install]
WantedBy=multi-user.target
EOF
}
bin=/srv/shop/venv/bin
service web "$bin/gunicorn --workers 2 --threads 4 --preload --no-control-socket --umask 0 --bind unix:/srv/shop/run/web.sock core.wsgi:application"
service worker-default "$bin/celery -A core worker -n default@%%h -Q default -c 2"
service worker-heavy "$bin/celery -A core worker -n heavy@%%h -Q heavy -c 1"
service worker-io "$bin/celery -A core worker -n io@%%h -Q io -P threads -c 8"
service beat "$bin/celery -A core beat --pidfile="
service flower "/opt/flower/bin/celery --broker=redis://127.0.0.1:6379/0 flower --address=127.0.0.1 --url-prefix=flower"
chown -R shop: /srv/shop
chmod 755 /srv/shop
cd /srv/shop/app
set -a && . /etc/shop.env && set +a
runuser -u shop -- $bin/python manage.py migrate --verbosity 0
runuser -u shop -- $bin/python manage.py collectstatic --noinput --verbosity 0
systemctl -q daemon-reload
systemctl -q enable --now web worker-default worker-heavy worker-io beat flower

# TLS and nginx
openssl req -x509 -newkey rsa:2048 -nodes -days 365 -subj "/CN=$ADDRESS" -keyout /etc/ssl/private/shop.key -out /etc/ssl/certs/shop.pem 2>/dev/null
rm -f /etc/nginx/sites-enabled/default
cat >/etc/nginx/conf.d/shop.conf <<EOF
server { listen 80 default_server; return 301 https://\$host\$request_uri; }
server {
  listen 443 ssl default_server;
  ssl_certificate /etc/ssl/certs/shop.pem;
  ssl_certificate_key /etc/ssl/private/shop.key;
  location /static/ { alias /srv/shop/static/; }
  location /media/ { alias /srv/shop/media/; }
  location /flower/ { proxy_pass http://127.0.0.1:5555; }
  location / {
    proxy_pass http://unix:/srv/shop/run/web.sock;
    proxy_set_header Host \$http_host;
    proxy_set_header X-Forwarded-Proto https;
  }
}
EOF
systemctl -q reload nginx
