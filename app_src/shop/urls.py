"""The shop's URLs."""

from django.contrib.auth.views import LoginView, LogoutView
from django.urls import path

from shop import health, views

urlpatterns = [
    path("", views.home, name="home"),
    path("products/<slug:slug>/", views.product, name="product"),
    path("orders/<uuid:public_id>/", views.order, name="order"),
    path("orders/<uuid:public_id>/status/", views.order_status, name="order_status"),
    path("report/", views.report_start, name="report_start"),
    path("report/<uuid:task_id>/", views.report, name="report"),
    path("tasks/", views.task_start, name="task_start"),
    path("tasks/<uuid:task_id>/", views.task, name="task"),
    path("register/", views.register, name="register"),
    path("login/", LoginView.as_view(), name="login"),
    path("logout/", LogoutView.as_view(), name="logout"),
    path("favicon.ico", views.favicon, name="favicon"),
    path("healthz/", health.healthz, name="healthz"),
    path("readyz/", health.readyz, name="readyz"),
]
