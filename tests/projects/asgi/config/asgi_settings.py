import os

from config.settings import *

INSTALLED_APPS = [*INSTALLED_APPS, "channels"]
ASGI_APPLICATION = "config.asgi.application"
CHANNEL_LAYERS = {
    "default": {"BACKEND": "channels_redis.core.RedisChannelLayer", "CONFIG": {"hosts": [os.environ["CACHE_URL"]]}}
}
ROOT_URLCONF = "config.asgi_urls"
