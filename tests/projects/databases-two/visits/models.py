from django.db import models


class Visit(models.Model):
    page = models.TextField()
    browser = models.TextField(null=True)
