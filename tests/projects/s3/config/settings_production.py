# Static files and uploads are on S3, as django-storages documents it: the manifest has one name for all releases.
import os

from config.asgi_settings import *

INSTALLED_APPS = [*INSTALLED_APPS, "storages"]
ROOT_URLCONF = "config.urls_production"
AWS_STORAGE_BUCKET_NAME = os.environ["AWS_STORAGE_BUCKET_NAME"]
AWS_S3_ENDPOINT_URL = os.environ["AWS_S3_ENDPOINT_URL"]
AWS_S3_REGION_NAME = "us-east-1"
AWS_DEFAULT_ACL = "public-read"
AWS_QUERYSTRING_AUTH = False
STORAGES = {
    "default": {"BACKEND": "storages.backends.s3.S3Storage"},
    "staticfiles": {
        "BACKEND": "storages.backends.s3.S3ManifestStaticStorage",
        "OPTIONS": {"location": "static"},
    },
}
