from django.urls import include, path

from ledger import views

urlpatterns = [
    path("healthz/", views.health),
    path("slow/", views.slow),
    path("effects/", views.effects),
    path("", include("core.urls")),
]
