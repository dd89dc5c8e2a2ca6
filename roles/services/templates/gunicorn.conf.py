# {{ ansible_managed }}
import contextlib
import gc
import threading
import urllib.parse
import wsgiref.util
import logging

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
graceful_timeout = 30
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
    """Before the first fork: answer the pages to warm up, then take all there is out of the garbage collector's sight.

    The processes share what is there by now, and none of them makes its first visitor wait.
    """
    from django.db import connections

    for path in {{ services_warm_paths | to_json }}:
        try:
            warm_up(server.app.wsgi(), path)
        except Exception:
            # The processes serve all the same.
            server.log.exception("There is no answer to %s before the processes start.", path)
    for connection in connections.all():
        # Without a database the pages say so themselves.
        with contextlib.suppress(Exception), connection.cursor() as cursor:
            cursor.execute("SELECT 1")
        # A connection must not be shared, nor a pool of them.
        connection.close()
        if getattr(connection, "pool", None):
            connection.close_pool()
    if left := [thread.name for thread in threading.enumerate() if thread is not threading.current_thread()]:
        # A fork has the thread that forks alone.
        server.log.warning("The pages to warm up have left threads, which the processes will not have: %s.", left)
    gc.collect()
    gc.freeze()


def warm_up(application, path):
    """Ask the application for a page, as nginx does."""
    request = {
        "PATH_INFO": urllib.parse.unquote(path.partition("?")[0], "latin-1"),
        "QUERY_STRING": path.partition("?")[2],
        "HTTP_HOST": "{{ services_domain }}",
        "HTTP_X_FORWARDED_PROTO": "https",
        "REMOTE_ADDR": "127.0.0.1",
        "wsgi.url_scheme": "https",
        "wsgi.multithread": True,
        "wsgi.multiprocess": True,
    }
    wsgiref.util.setup_testing_defaults(request)
    with contextlib.closing(application(request, lambda *_: None)) as answer:
        for _ in answer:
            pass
