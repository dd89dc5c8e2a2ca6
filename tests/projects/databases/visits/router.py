class Router:
    """Keeps the tables of this application in the database `analytics`, and those of all others out of it."""

    def db_for_read(self, model, **hints):
        return "analytics" if model._meta.app_label == "visits" else None

    db_for_write = db_for_read

    def allow_migrate(self, db, app_label, **hints):
        return (db == "analytics") == (app_label == "visits")
