from django.apps import AppConfig


class LedgerConfig(AppConfig):
    name = "ledger"
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        from shop import views

        from ledger import book, tasks

        book.keep()
        views.DEMO_TASKS.update(tasks.OFFERED)
