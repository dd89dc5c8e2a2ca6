"""The forms that customers fill in."""

from django import forms
from django.contrib.auth.forms import UserCreationForm

from shop.models import Order


class OrderForm(forms.ModelForm):
    """Quantity, name and address of an order."""

    class Meta:
        model = Order
        fields = ["quantity", "name", "email", "address"]
        widgets = {
            "quantity": forms.NumberInput(attrs={"min": 1, "max": 100}),
            "name": forms.TextInput(attrs={"autocomplete": "name"}),
            "email": forms.EmailInput(attrs={"autocomplete": "email"}),
            "address": forms.Textarea(attrs={"rows": 3, "autocomplete": "street-address"}),
        }


class RegistrationForm(UserCreationForm):
    """A new customer; the welcome email goes to `email`."""

    email = forms.EmailField(widget=forms.EmailInput(attrs={"autocomplete": "email"}))

    class Meta(UserCreationForm.Meta):
        fields = ["username", "email"]
