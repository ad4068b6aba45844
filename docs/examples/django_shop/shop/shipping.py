"""Ships an order once, whoever else tries."""

from django.db import connection, transaction

from .locks import locks
from .models import Order


def ship(number: int) -> bool:
    # The lock outside, the transaction inside: it is committed before the lock is released.
    hold = locks().get(f"order-{number}").hold(timeout=2)
    with hold as lock, transaction.atomic(), lock.guard(connection):
        order = Order.objects.get(pk=number)
        if order.shipped:
            return False
        order.shipped += 1
        order.save()
        return True
