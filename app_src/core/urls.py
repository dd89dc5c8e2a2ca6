"""The project's URLs."""

from django.conf import settings
from django.conf.urls.static import static
from django.contrib import admin
from django.urls import include, path

urlpatterns = [
    path("admin/", admin.site.urls),
    path("", include("shop.urls")),
    # Empty unless DEBUG: in production nginx serves the uploaded and generated files.
    *static(settings.MEDIA_URL, document_root=settings.MEDIA_ROOT),
]
