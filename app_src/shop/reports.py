"""The sales report: a CSV file, made slowly enough to watch."""

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
    """Where the report lies; nginx serves it from there."""
    return Path(settings.MEDIA_ROOT) / "reports" / f"{report_id}.csv"


def report_url(report_id: str) -> str:
    """The address of the report."""
    return f"{settings.MEDIA_URL}reports/{report_id}.csv"


def build_report(report_id: str, pause: float, on_progress: Callable[[int, int], None]) -> str:
    """Write the sales of the last 30 days, a line a day, and return the report's address.

    `pause` is how many seconds each day takes: it stands for real work, so that the progress bar has something to show.
    `on_progress` is called with days done and days in all. The file appears only when it is whole; whatever stops the
    work, a time limit (SoftTimeLimitExceeded) included, leaves no part of it behind.
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
