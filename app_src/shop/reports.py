"""The sales report: a CSV file, written slowly enough to watch."""

import csv
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

from django.conf import settings
from django.db.models import Count, F, Sum
from django.utils import timezone

from shop.models import Order

DAYS = 30


def report_path(report_id: str) -> Path:
    """Return the path of the report, from which nginx serves it."""
    return Path(settings.MEDIA_ROOT) / "reports" / f"{report_id}.csv"


def report_url(report_id: str) -> str:
    """Return the URL of the report."""
    return f"{settings.MEDIA_URL}reports/{report_id}.csv"


def build_report(report_id: str, pause: float, on_progress: Callable[[int, int], None]) -> str:
    """Write the sales of the last 30 days, a line per day, and return the report's URL.

    `pause` is the number of seconds per day: it stands for real work, so that there is progress to show.
    `on_progress` is called with the days done and the total. The file appears only when it is complete; an error, also
    a time limit (SoftTimeLimitExceeded), removes the partial file.
    """
    target = report_path(report_id)
    partial = target.with_suffix(".partial")
    target.parent.mkdir(parents=True, exist_ok=True, mode=settings.FILE_UPLOAD_DIRECTORY_PERMISSIONS)
    today = timezone.localdate()
    try:
        with partial.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["day", "orders", "packets", "sales"])
            for done in range(DAYS):
                on_progress(done, DAYS)
                day = today - timedelta(days=DAYS - 1 - done)
                sales = Order.objects.filter(created_at__date=day).aggregate(
                    orders=Count("pk"),
                    packets=Sum("quantity", default=0),
                    total=Sum(F("quantity") * F("unit_price"), default=0),
                )
                writer.writerow([day, sales["orders"], sales["packets"], sales["total"]])
                time.sleep(pause)
        partial.chmod(settings.FILE_UPLOAD_PERMISSIONS)
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)
    return report_url(report_id)
