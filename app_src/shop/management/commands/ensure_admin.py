"""`manage.py ensure_admin`: see the command's help."""

from typing import Any

from decouple import config
from django.contrib.auth.models import User
from django.core.management.base import BaseCommand, CommandError


class Command(BaseCommand):
    help = (
        "Creates the administrator named by DJANGO_SUPERUSER_USERNAME, _EMAIL and _PASSWORD in the environment, unless"
        " a user of that name exists; an existing user, also its password, is not changed."
    )

    def handle(self, *args: Any, **options: Any) -> None:
        username = config("DJANGO_SUPERUSER_USERNAME", default="")
        password = config("DJANGO_SUPERUSER_PASSWORD", default="")
        if not username or not password:
            raise CommandError("Set DJANGO_SUPERUSER_USERNAME and DJANGO_SUPERUSER_PASSWORD.")
        if User.objects.filter(username=username).exists():
            self.stdout.write(f"{username} exists")
            return
        User.objects.create_superuser(username, config("DJANGO_SUPERUSER_EMAIL", default=""), password)
        self.stdout.write(f"{username} created")
