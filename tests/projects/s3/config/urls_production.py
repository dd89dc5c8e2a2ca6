from config.urls import urlpatterns
from django.urls import path
from django.views.generic import TemplateView
from notes import limits

urlpatterns = [
    *urlpatterns,
    path("limit", limits.page),
    path("page", TemplateView.as_view(template_name="page.html")),
]
