"""The first products."""

from decimal import Decimal

from django.apps.registry import Apps
from django.db import migrations
from django.db.backends.base.schema import BaseDatabaseSchemaEditor

PRODUCTS = [
    (
        "basil",
        "Basil",
        "Genovese",
        "April to June",
        "2.40",
        "Broad, glossy leaves for a windowsill or between tomatoes.",
    ),
    (
        "carrot",
        "Carrot",
        "Nantaise",
        "March to July",
        "2.20",
        "Sweet and nearly coreless; sow thinly and it thins itself.",
    ),
    (
        "lavender",
        "Lavender",
        "Munstead",
        "February to April",
        "3.10",
        "Slow to start, then years of scent, and of bees.",
    ),
    (
        "radish",
        "Radish",
        "Cherry Belle",
        "March to September",
        "1.90",
        "From seed to salad in four weeks; good first seeds.",
    ),
    (
        "sunflower",
        "Sunflower",
        "Titan",
        "April to June",
        "2.60",
        "Three metres by August. Stake it, and leave the head.",
    ),
    (
        "tomato",
        "Tomato",
        "Marmande",
        "February to April",
        "2.90",
        "Ribbed beefsteak fruit that ripens in a cool summer.",
    ),
]


def add_products(apps: Apps, schema_editor: BaseDatabaseSchemaEditor) -> None:
    """Add each product unless its slug exists."""
    product = apps.get_model("shop", "Product")
    for slug, name, variety, sowing, price, description in PRODUCTS:
        product.objects.get_or_create(
            slug=slug,
            defaults={
                "name": name,
                "variety": variety,
                "sowing": sowing,
                "price": Decimal(price),
                "description": description,
                "picture": f"shop/products/{slug}.svg",
            },
        )


class Migration(migrations.Migration):
    dependencies = [("shop", "0001_initial")]
    # Reversing deletes nothing: orders may refer to the products.
    operations = [migrations.RunPython(add_products, migrations.RunPython.noop)]
