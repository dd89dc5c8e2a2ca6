import os
import time

from django.core.management.base import BaseCommand
from notes.models import Note


class Command(BaseCommand):
    """Runs until it is stopped."""

    def add_arguments(self, parser):
        parser.add_argument("name")

    def handle(self, *args, name, **options):
        Note.objects.create(text=f"{name} {os.environ['RELEASE_ID']}")
        print(f"{name} runs", flush=True)
        while True:
            time.sleep(60)
