import os

from config import local_settings
from config.settings import *

STATICFILES_DIRS = [BASE_DIR / "assets"]
ROOT_URLCONF = "config.urls_production"
GREETING = local_settings.GREETING
PRIVATE_KEY = os.environ["PRIVATE_KEY"]
