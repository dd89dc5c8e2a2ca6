# {{ ansible_managed }}
import contextlib
import gc

# The socket is the release's own and comes on the command line. Settings: docs.gunicorn.org/en/stable/settings.html
worker_class = "gthread"
workers = {{ services_web.processes }}
threads = {{ services_web.threads }}
# Loaded once and shared by the processes. A release is never reloaded in place, so nothing is lost by it.
preload_app = True
# A process is renewed now and then, and not all of them at once.
max_requests = 2000
max_requests_jitter = 400
timeout = 60
# As long as nginx waits for an answer (proxy_read_timeout): a rollout cuts no request short.
graceful_timeout = 60
# The heartbeat file must not wait for a disk.
worker_tmp_dir = "/dev/shm"
# The socket is open to all; its folder lets in nobody but the application and nginx (group www-data).
umask = 0
# Only nginx can reach the socket, and it sets these headers itself.
forwarded_allow_ips = "*"
accesslog = None
errorlog = "-"
control_socket_disable = True


def when_ready(server):
    """Before the first fork: load what the first request would, then take it out of the garbage collector's sight.

    The processes share what is there by now.
    """
    from django.db import connections
    from django.template import engines
    from django.urls import get_resolver

    get_resolver().url_patterns
    engines.all()
    for connection in connections.all():
        # Without a database the pages say so themselves.
        with contextlib.suppress(Exception), connection.cursor() as cursor:
            cursor.execute("SELECT 1")
        # A connection must not be shared, nor a pool of them.
        connection.close()
        if getattr(connection, "pool", None):
            connection.close_pool()
    gc.collect()
    gc.freeze()
