import json

from config.celery import app  # noqa: F401 (tasks are sent to its broker)
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.shortcuts import get_object_or_404

from notes.models import Note
from notes.tasks import TICK, count_words
from notes.version import VERSION


def home(request: HttpRequest) -> HttpResponse:
    return HttpResponse(f"<h1>Notes, {VERSION}</h1>")


def up(request: HttpRequest) -> HttpResponse:
    """The health page: whether the database answers."""
    Note.objects.exists()
    return HttpResponse("up")


def add(request: HttpRequest) -> JsonResponse:
    note = Note.objects.create(text=json.loads(request.body)["text"])
    count_words.delay(note.pk)
    return JsonResponse({"url": f"/notes/{note.pk}/"}, status=201)


def show(request: HttpRequest, number: int) -> JsonResponse:
    note = get_object_or_404(Note, pk=number)
    return JsonResponse({"text": note.text, "words": note.words, "worker": note.worker})


def ticks(request: HttpRequest) -> JsonResponse:
    note = Note.objects.filter(text=TICK).first()
    return JsonResponse({"ticks": note.words if note else 0})
