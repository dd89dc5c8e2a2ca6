from asgiref.sync import async_to_sync
from channels.layers import get_channel_layer
from django.core.management.base import BaseCommand


class Command(BaseCommand):
    """Tells a text to everyone in the room, from another process than theirs."""

    def add_arguments(self, parser):
        parser.add_argument("text")

    def handle(self, *args, text, **options):
        async_to_sync(get_channel_layer().group_send)("room", {"type": "room.told", "text": text})
