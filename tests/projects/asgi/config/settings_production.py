# Replaced by that of `s3` where both are deployed.
from config.asgi_settings import *
