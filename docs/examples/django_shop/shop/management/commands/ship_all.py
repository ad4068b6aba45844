"""`python manage.py ship_all`: however many hosts start it, one does it."""

import threading
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from score.distlock import CouldNotAcquireLock
from shop.locks import locks
from shop.models import Order
from shop.shipping import ship


class Command(BaseCommand):
    help = "Ships all orders"

    def handle(self, *args: Any, **options: Any) -> None:
        lost = threading.Event()
        hold = (
            locks()
            .get("ship-all")
            .hold(timeout=0, autoextend=True, on_lost=lambda lock: lost.set(), note="ship_all")
        )
        try:
            with hold:
                for number in Order.objects.values_list("pk", flat=True):
                    if lost.is_set():
                        break  # the end of the block raises LockExpired
                    ship(number)
        except CouldNotAcquireLock as error:
            raise CommandError(str(error), returncode=75) from error
