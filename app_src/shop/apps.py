"""The application's registration with Django."""

from django.apps import AppConfig


class ShopConfig(AppConfig):
    name = "shop"
