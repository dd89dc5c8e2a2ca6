import os

from django.core.asgi import get_asgi_application

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "config.settings_production")
django_application = get_asgi_application()

from channels.routing import ProtocolTypeRouter, URLRouter
from django.urls import path
from notes.consumers import Room

application = ProtocolTypeRouter({"http": django_application, "websocket": URLRouter([path("socket", Room.as_asgi())])})
