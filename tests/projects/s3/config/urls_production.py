from config.asgi_urls import urlpatterns
from django.urls import path
from django.views.generic import TemplateView

urlpatterns = [*urlpatterns, path("page", TemplateView.as_view(template_name="page.html"))]
