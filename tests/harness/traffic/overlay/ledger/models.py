from django.db import models


class Effect(models.Model):
    """What has happened once must not happen again."""

    key = models.CharField(max_length=100, unique=True)
