import os

from channels.generic.websocket import AsyncWebsocketConsumer


class Room(AsyncWebsocketConsumer):
    """Answers each message with the name of its release, and passes on what the room is told."""

    async def connect(self):
        await self.channel_layer.group_add("room", self.channel_name)
        await self.accept()

    async def disconnect(self, code):
        await self.channel_layer.group_discard("room", self.channel_name)

    async def receive(self, text_data):
        await self.send(f"{text_data} {os.environ['RELEASE_ID']}")

    async def room_told(self, event):
        await self.send(event["text"])
