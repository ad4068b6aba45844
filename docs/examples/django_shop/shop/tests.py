from django.test import Client, TransactionTestCase

from .locks import locks
from .models import Order


class Shipping(TransactionTestCase):
    def test_an_order_is_shipped_once(self) -> None:
        order = Order.objects.create()
        first = Client().get(f"/orders/{order.pk}/ship")
        second = Client().get(f"/orders/{order.pk}/ship")
        self.assertEqual([first.json(), second.json()], [{"shipped": True}, {"shipped": False}])

    def test_somebody_else_ships_it(self) -> None:
        locks().acquire("order-1")
        self.assertEqual(Client().get("/orders/1/ship").status_code, 409)
        locks().revoke("order-1")
