"""The shop in Django's admin. The packages of schedules and results add their own pages."""

from django.contrib import admin
from django.http import HttpRequest

from shop.models import Heartbeat, Order, OrderStep, PageView, Payment, Product

admin.site.site_header = admin.site.site_title = "Seedbed"


class ReadOnly:
    """Rows that only the application writes."""

    def has_add_permission(self, request: HttpRequest, obj: object = None) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: object = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: object = None) -> bool:
        return False


class OrderStepInline(ReadOnly, admin.TabularInline):
    model = OrderStep
    fields = readonly_fields = ["kind", "state", "detail", "attempts", "task_id", "due_at", "updated_at"]
    extra = 0


class PaymentInline(ReadOnly, admin.TabularInline):
    model = Payment
    fields = readonly_fields = ["amount", "idempotency_key", "created_at"]
    extra = 0


@admin.register(Order)
class OrderAdmin(admin.ModelAdmin):
    list_display = ["number", "created_at", "name", "product", "quantity", "total"]
    list_filter = ["created_at", "product", "steps__state"]
    list_select_related = ["product"]
    search_fields = ["name", "email", "public_id"]
    date_hierarchy = "created_at"
    raw_id_fields = ["customer"]
    inlines = [OrderStepInline, PaymentInline]


@admin.register(Product)
class ProductAdmin(admin.ModelAdmin):
    list_display = ["name", "variety", "price", "sowing"]
    list_editable = ["price"]
    prepopulated_fields = {"slug": ["name"]}


@admin.register(PageView)
class PageViewAdmin(ReadOnly, admin.ModelAdmin):
    list_display = ["page", "count"]


@admin.register(Heartbeat)
class HeartbeatAdmin(ReadOnly, admin.ModelAdmin):
    list_display = ["name", "at", "release"]
