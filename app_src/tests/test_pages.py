"""The pages, as a browser without JavaScript sees them."""

import re
from collections.abc import Callable
from contextlib import AbstractContextManager
from io import StringIO

import pytest
from django.contrib.auth.models import User
from django.core.management import CommandError, call_command
from django.test import Client

from shop.models import Order, Product


@pytest.fixture
def admin(client: Client, admin_user: User) -> Client:
    client.force_login(admin_user)
    return client


def test_the_shop_opens_with_products(db: None, client: Client) -> None:
    page = client.get("/").content.decode()
    assert Product.objects.count() == 6
    assert all(product.get_absolute_url() in page for product in Product.objects.all())


def test_plain_http_is_redirected() -> None:
    response = Client().get("/")
    assert (response.status_code, response["Location"]) == (301, "https://testserver/")


def test_registering_creates_an_account_and_signs_in(db: None, client: Client) -> None:
    form = {"username": "ada", "email": "ada@example.org", "password1": "seven-tall-beans", "password2": "no"}
    assert client.post("/register/", form).status_code == 200
    assert not User.objects.exists()
    response = client.post("/register/", form | {"password2": "seven-tall-beans"}, follow=True)
    assert response.context["user"] == User.objects.get(email="ada@example.org")


@pytest.mark.django_db(transaction=True)
def test_registering_works_without_the_broker(client: Client, no_broker: Callable[[], AbstractContextManager]) -> None:
    form = {"username": "ada", "email": "a@b.org", "password1": "seven-tall-beans", "password2": "seven-tall-beans"}
    with no_broker():
        assert client.post("/register/", form)["Location"] == "/"
    assert User.objects.filter(username="ada").exists()


def test_signing_in_and_out(db: None, client: Client) -> None:
    User.objects.create_user("ada", password="seven-tall-beans")
    page = client.post("/login/", {"username": "ada", "password": "seven-tall-beans"}, follow=True)
    assert "Sign out" in page.content.decode()
    assert "Sign in" in client.post("/logout/", follow=True).content.decode()


def test_an_order_with_mistakes_is_not_placed(client: Client, product: Product, customer: dict[str, object]) -> None:
    response = client.post(product.get_absolute_url(), customer | {"quantity": 0, "email": "not an address"})
    assert set(response.context["form"].errors) == {"quantity", "email"}
    assert not Order.objects.exists()


def test_an_order_from_another_site_is_refused(product: Product, customer: dict[str, object]) -> None:
    strict = Client(enforce_csrf_checks=True, headers={"X-Forwarded-Proto": "https"})
    assert strict.post(product.get_absolute_url(), customer).status_code == 403


def test_an_order_belongs_to_who_is_signed_in(
    client: Client, product: Product, customer: dict[str, object], django_user_model: type[User]
) -> None:
    user = django_user_model.objects.create_user("ada", email="ada@example.org")
    client.force_login(user)
    assert 'value="ada@example.org"' in client.get(product.get_absolute_url()).content.decode()
    client.post(product.get_absolute_url(), customer)
    assert Order.objects.get().customer == user


def test_orders_cannot_be_enumerated(client: Client, order: Order) -> None:
    assert client.get(f"/orders/{order.pk}/").status_code == 404
    assert client.get("/orders/00000000-0000-4000-8000-000000000000/").status_code == 404


def test_an_order_shows_what_its_customer_typed_as_text(client: Client, order: Order) -> None:
    page = client.get(order.get_absolute_url()).content.decode()
    assert "Ada &lt;Green&gt; &amp; Sons" in page


@pytest.mark.parametrize(
    "url",
    [
        lambda order: "/",
        lambda order: order.product.get_absolute_url(),
        lambda order: order.get_absolute_url(),
        lambda order: "/register/",
        lambda order: "/login/",
        lambda order: "/report/",
        lambda order: f"/report/{order.public_id}/",
        lambda order: "/nowhere/",
    ],
    ids=["home", "product", "order", "register", "login", "report-start", "report", "not-found"],
)
def test_pages_obey_a_strict_content_security_policy(client: Client, order: Order, url: Callable[[Order], str]) -> None:
    page = client.get(url(order)).content.decode()
    assert "<h1>" in page
    assert not re.search(
        r"<script(?![^>]* src=\"/static/)|<style|\sstyle=|\son\w+=|(?:src|href)=\"(?:https?:)?//", page
    )


@pytest.mark.parametrize(
    "page",
    [
        "shop/order",
        "shop/product",
        "shop/pageview",
        "shop/heartbeat",
        "django_celery_beat/periodictask",
        "django_celery_results/taskresult",
    ],
)
def test_the_admin_lists(admin: Client, order: Order, page: str) -> None:
    assert admin.get(f"/admin/{page}/").status_code == 200


def test_the_admin_shows_an_orders_steps(admin: Client, order: Order) -> None:
    assert "Shipping label" in admin.get(f"/admin/shop/order/{order.pk}/change/").content.decode()


def test_ensure_admin_creates_an_administrator_once(db: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def ensure_admin(**variables: str) -> str:
        for name, value in variables.items():
            monkeypatch.setenv(f"DJANGO_SUPERUSER_{name}", value)
        call_command("ensure_admin", stdout=(output := StringIO()))
        return output.getvalue().strip()

    assert ensure_admin(USERNAME="root", EMAIL="root@example.org", PASSWORD="first") == "root created"
    assert ensure_admin(PASSWORD="second", EMAIL="changed@example.org") == "root exists"
    administrator = User.objects.get(username="root")
    assert administrator.is_superuser
    assert administrator.check_password("first")
    assert administrator.email == "root@example.org"
    with pytest.raises(CommandError, match="DJANGO_SUPERUSER_PASSWORD"):
        ensure_admin(PASSWORD="")
