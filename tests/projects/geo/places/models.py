from django.contrib.gis.db import models


class Place(models.Model):
    point = models.PointField()
